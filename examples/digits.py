"""Handwritten digits: train with a validation set, keep the best weights, look at the mistakes.

Needs scikit-learn for the data. Run it: ``python examples/digits.py [MODEL.safetensors]``.
"""

import sys

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import gradstack as gs
from gradstack import nn, optim


def main() -> None:
    """Train, report, save."""
    gs.seed(0)
    images, labels = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        images / 16, labels, test_size=0.2, stratify=labels, random_state=0
    )
    x_train, x_val, y_train, y_val = train_test_split(
        x_train, y_train, test_size=0.1, stratify=y_train, random_state=0
    )
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
    history = gs.fit(
        net,
        x_train,
        y_train,
        cost=nn.CrossEntropyLoss(label_smoothing=0.05),
        optimizer=optim.AdamW(lr=3e-3, weight_decay=0.01),
        epochs=200,
        validation=(x_val, y_val),
        early_stopping=gs.EarlyStopping(patience=15),
        progress=sys.stderr.isatty(),
    )
    net.eval()
    predicted = net(x_test).argmax(1)
    print(f"{len(history.loss)} epochs, accuracy {np.mean(predicted == y_test):.4f}")
    wrong = np.flatnonzero(predicted != y_test)
    for i in wrong[:5]:
        print(f"  a {y_test[i]} taken for a {predicted[i]}")
    if len(sys.argv) > 1:
        gs.save(net, sys.argv[1])


if __name__ == "__main__":
    main()
