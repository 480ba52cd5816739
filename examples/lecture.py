"""The network of LeCun's lecture on backpropagation, its class body as on the slide.

Run it: ``python examples/lecture.py``.
"""

import numpy as np

import gradstack as gs
from gradstack import nn, relu


class mynet(nn.Module):  # noqa: N801  (the lecture's name)
    """Three linear layers with two ReLUs between them."""

    def __init__(self, d0, d1, d2, d3):
        super().__init__()
        self.m0 = nn.Linear(d0, d1)
        self.m1 = nn.Linear(d1, d2)
        self.m2 = nn.Linear(d2, d3)

    def forward(self, x):
        """Return the scores of an image."""
        z0 = x.view(-1)  # flatten input tensor
        s1 = self.m0(z0)
        z1 = relu(s1)
        s2 = self.m1(z1)
        z2 = relu(s2)
        s3 = self.m2(z2)
        return s3


def main() -> None:
    """Show the output for one image and what backpropagation passes through each stage."""
    gs.seed(0)
    image = np.random.default_rng(0).standard_normal((3, 10, 20))
    d0 = image.size
    model = mynet(d0, 60, 40, 10)
    out = model(image)
    print("output", out.shape)

    result = gs.backprop(model, nn.CrossEntropyLoss(), image, 3)
    for stage in result.stages:
        print(
            f"{stage.name:8} z {stage.z.size:4}  |dC/dz| {np.linalg.norm(stage.dz):.4f}"
            f"  {stage.w.size:6} parameters  |dC/dw| {np.linalg.norm(stage.dw):.4f}"
        )


if __name__ == "__main__":
    main()
