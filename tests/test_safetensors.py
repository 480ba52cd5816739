"""gradstack._safetensors against the safetensors package, and against damaged files."""

from __future__ import annotations

import json
import os
import stat
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradstack import _safetensors

DTYPES = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]


def build(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str, shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def sample(rng: np.random.Generator) -> dict[str, np.ndarray]:
    tensors = {code: (rng.normal(size=(3, 5)) * 40).astype(code) for code in DTYPES}
    tensors["scalar"] = np.array(1.5, np.float32)
    tensors["empty"] = np.zeros((0, 7), np.int16)
    tensors['name with ü, " and \\'] = np.arange(3.0)
    tensors["nan and inf"] = np.array([np.nan, np.inf, -0.0, 5e-324])
    return tensors


def assert_same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].dtype == array.dtype.newbyteorder("=")
        assert got[name].shape == array.shape
        assert got[name].tobytes() == np.ascontiguousarray(array, array.dtype).tobytes(), name


def test_round_trip(tmp_path: Path) -> None:
    tensors = sample(np.random.default_rng(0))
    metadata = {"format": "pt", "übung": "1\n2", "": ""}
    _safetensors.write(tmp_path / "a.safetensors", tensors, metadata)
    got, got_metadata = _safetensors.read(tmp_path / "a.safetensors")
    assert_same(got, tensors)
    assert got_metadata == metadata
    assert _safetensors.read_metadata(tmp_path / "a.safetensors") == metadata
    for array in got.values():
        assert array.flags.writeable
        assert array.flags.aligned


def test_empty_file_of_tensors(tmp_path: Path) -> None:
    _safetensors.write(tmp_path / "a", {})
    assert _safetensors.read(tmp_path / "a") == ({}, {})


def test_strides_and_byte_order(tmp_path: Path) -> None:
    base = np.arange(24.0).reshape(4, 6)
    tensors = {"t": base.T, "s": base[::-1, ::2], "big": base.astype(">f8")}
    _safetensors.write(tmp_path / "a", tensors)
    got, _ = _safetensors.read(tmp_path / "a")
    for name, array in tensors.items():
        np.testing.assert_array_equal(got[name], array)


def test_the_package_reads_what_we_write(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors", reason="the oracle is not installed")
    from safetensors.numpy import load_file

    tensors = sample(np.random.default_rng(1))
    path = tmp_path / "a.safetensors"
    _safetensors.write(path, tensors, {"key": "value"})
    assert_same(load_file(path), tensors)
    with safetensors.safe_open(path, framework="np") as file:
        assert file.metadata() == {"key": "value"}


def test_we_read_what_the_package_writes(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="the oracle is not installed")
    from safetensors.numpy import save_file

    tensors = sample(np.random.default_rng(2))
    save_file(tensors, tmp_path / "a", metadata={"k": "v"})
    got, metadata = _safetensors.read(tmp_path / "a")
    assert_same(got, tensors)
    assert metadata == {"k": "v"}


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the oracle is not installed")
    pytest.importorskip("safetensors", reason="the oracle is not installed")
    from safetensors.torch import save_file

    values = torch.randn(7, 3).to(torch.bfloat16)
    save_file({"b": values, "h": values.to(torch.float16)}, tmp_path / "a")
    got, _ = _safetensors.read(tmp_path / "a")
    assert got["b"].dtype == np.float32
    np.testing.assert_array_equal(got["b"], values.to(torch.float32).numpy())
    assert got["h"].dtype == np.float16


def test_write_refuses(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(TypeError, match="'x' has dtype complex128"):
        _safetensors.write(path, {"x": np.zeros(2, complex)})
    with pytest.raises(TypeError, match="'x' has dtype"):
        _safetensors.write(path, {"x": np.array(["a"])})
    with pytest.raises(ValueError, match="reserved"):
        _safetensors.write(path, {"__metadata__": np.zeros(2)})
    with pytest.raises(TypeError, match="metadata 'a': expected str, got int"):
        _safetensors.write(path, {}, {"a": 1})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="tensor name: expected str"):
        _safetensors.write(path, {3: np.zeros(2)})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="not valid Unicode"):
        _safetensors.write(path, {"\ud800": np.zeros(2)})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    _safetensors.write(path, {"x": np.arange(3.0)})
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        _safetensors.write(path, {"x": np.zeros(1000)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_file_is_complete_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    sync, replace = os.fsync, os.replace

    def log_sync(descriptor: int) -> None:
        events.append("sync")
        sync(descriptor)

    def log_replace(source: str, target: str) -> None:
        events.append("replace")
        assert_same(_safetensors.read(source)[0], {"x": np.arange(5.0)})
        replace(source, target)

    monkeypatch.setattr(os, "fsync", log_sync)
    monkeypatch.setattr(os, "replace", log_replace)
    _safetensors.write(tmp_path / "a", {"x": np.arange(5.0)})
    assert events[:2] == ["sync", "replace"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes and links")
def test_modes_links_and_special_files(tmp_path: Path) -> None:
    path, link = tmp_path / "a", tmp_path / "link"
    _safetensors.write(path, {"x": np.zeros(1)})
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    path.chmod(0o640)
    link.symlink_to(path)
    _safetensors.write(link, {"x": np.ones(1)})
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert _safetensors.read(path)[0]["x"][0] == 1
    with pytest.raises(ValueError, match="not a regular file"):
        _safetensors.write(tmp_path, {})
    with pytest.raises(ValueError, match="not a regular file"):
        _safetensors.write("/dev/null", {})
    with pytest.raises(FileNotFoundError):
        _safetensors.write(tmp_path / "none" / "a", {})


F4 = entry("F32", [2], 0, 8)
DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "header's length"),
    "short": (b"\x01\x02", "header's length"),
    "header longer than the file": (build({}, length=3), "header's length"),
    "huge header": (struct.pack("<Q", 2**63) + b"{}", "header's length"),
    "zero header": (build(b""), "not a JSON object"),
    "not an object": (build([]), "not a JSON object"),
    "leading space": (build(b" {}"), "not a JSON object"),
    "broken JSON": (build(b'{"a": '), "damaged header"),
    "trailing text": (build(b"{} x"), "damaged header"),
    "not UTF-8": (build(b'{"\xff": 1}'), "not UTF-8"),
    "NaN": (build(b'{"a": NaN}'), "NaN is not JSON"),
    "deep": (build(b'{"a": ' + b"[" * 200_000), "nested too deeply|damaged header"),
    "long integer": (build(b'{"a": ' + b"9" * 5000 + b"}"), "digit"),
    "twice": (
        build(b'{"a":%s,"a":%s}' % ((json.dumps(F4).encode(),) * 2), bytes(8)),
        "occurs twice",
    ),
    "surrogate": (build(b'{"\\ud800":%s}' % json.dumps(F4).encode(), bytes(8)), "Unicode"),
    "metadata no object": (build({"__metadata__": [1]}), "__metadata__ is not an object"),
    "metadata no string": (build({"__metadata__": {"a": 1}}), "metadata 'a' is not a string"),
    "entry no object": (build({"a": 3}), "'a': expected exactly"),
    "entry lacks": (build({"a": {"dtype": "F32", "shape": []}}), "'a': expected exactly"),
    "entry has more": (build({"a": {**F4, "extra": 1}}, bytes(8)), "'a': expected exactly"),
    "dtype": (build({"a": entry("F8_E4M3", [8], 0, 8)}, bytes(8)), "'a' has dtype 'F8_E4M3'"),
    "dtype no string": (build({"a": entry(["F32"], [2], 0, 8)}, bytes(8)), "'a' has dtype"),
    "shape no list": (build({"a": entry("F32", 2, 0, 8)}, bytes(8)), "'a': shape"),
    "shape float": (build({"a": entry("F32", [2.0], 0, 8)}, bytes(8)), "'a': shape"),
    "shape bool": (build({"a": entry("F32", [True, 2], 0, 8)}, bytes(8)), "'a': shape"),
    "shape negative": (build({"a": entry("F32", [-2, -1], 0, 8)}, bytes(8)), "'a': shape"),
    "axes": (build({"a": entry("F32", [1] * 33 + [2], 0, 8)}, bytes(8)), "'a': shape"),
    "huge": (build({"a": entry("F32", [2**62], 0, 2**64)}), "larger than any memory"),
    "huge and empty": (build({"a": entry("F32", [2**62, 0], 0, 0)}), "larger than any memory"),
    "overflowing": (build({"a": entry("F32", [2**33, 2**33], 0, 8)}, bytes(8)), "memory"),
    "offsets one": (build({"a": {**F4, "data_offsets": [0]}}, bytes(8)), "'a': data_offsets"),
    "offsets float": (build({"a": entry("F32", [2], 0, 8.0)}, bytes(8)), "'a': data_offsets"),
    "offsets negative": (build({"a": entry("F32", [2], -8, 0)}, bytes(8)), "'a': data_offsets"),
    "offsets reversed": (build({"a": entry("F32", [2], 8, 0)}, bytes(8)), "its data_offsets span"),
    "size": (build({"a": entry("F32", [3], 0, 8)}, bytes(8)), "needs 12 bytes"),
    "overlap": (
        build({"a": F4, "b": entry("F32", [2], 4, 12)}, bytes(12)),
        "'b' starts at byte 4 of the data, expected 8",
    ),
    "hole": (build({"a": F4, "b": entry("F32", [2], 12, 20)}, bytes(20)), "leave a hole"),
    "late start": (build({"a": entry("F32", [2], 4, 12)}, bytes(12)), "expected 0"),
    "missing data": (build({"a": F4}, bytes(7)), "need 8 bytes of data, the file has 7"),
    "extra data": (build({"a": F4}, bytes(9)), "need 8 bytes of data, the file has 9"),
    "bool": (build({"a": entry("BOOL", [2], 0, 2)}, b"\x00\x02"), "neither 0 nor 1"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files(case: str, tmp_path: Path) -> None:
    data, message = DAMAGED[case]
    path = tmp_path / "damaged"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        _safetensors.read(path)
    assert str(path) in str(caught.value)


def test_claims_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "liar"
    size = 2**31
    path.write_bytes(build({"a": entry("F32", [size // 4], 0, size)}, bytes(64)))
    tracemalloc.start()
    with pytest.raises(ValueError, match="need 2147483648 bytes"):
        _safetensors.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_mutated_files_never_crash(tmp_path: Path) -> None:
    pytest.importorskip("hypothesis", reason="fuzzing needs hypothesis")
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    path = tmp_path / "fuzzed"
    _safetensors.write(path, {"a": np.arange(4.0), "b": np.ones(3, bool)}, {"k": "v"})
    original = path.read_bytes()
    header_end = 8 + struct.unpack("<Q", original[:8])[0]
    edits = st.lists(st.tuples(st.integers(0, header_end - 1), st.integers(0, 255)), max_size=4)

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    @given(edits, st.integers(0, len(original)))
    def mutate(changes: list[tuple[int, int]], length: int) -> None:
        data = bytearray(original)
        for position, value in changes:
            data[position] = value
        check(path, bytes(data if changes else data[:length]))

    mutate()


def test_invented_headers_never_crash(tmp_path: Path) -> None:
    pytest.importorskip("hypothesis", reason="fuzzing needs hypothesis")
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    path = tmp_path / "fuzzed"
    number = st.integers(-2, 40) | st.integers(0, 2**70) | st.floats() | st.booleans() | st.none()
    invented_entry = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "BF16", "BOOL", "U8", "X", 3]),
            "shape": st.lists(number, max_size=3) | number,
            "data_offsets": st.lists(number, min_size=1, max_size=3) | number,
        }
    )
    value = st.recursive(
        invented_entry | number | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=4,
    )
    names = st.text(max_size=4) | st.just("__metadata__")

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(names, value, max_size=4), st.binary(max_size=48))
    def invent(header: dict[str, Any], data: bytes) -> None:
        check(path, build(header, data))

    invent()


def check(path: Path, data: bytes) -> None:
    """Reading gives arrays no larger than the file, or a ValueError; nothing else."""
    path.write_bytes(data)
    try:
        tensors, _ = _safetensors.read(path)
    except ValueError:
        return
    assert sum(array.nbytes for array in tensors.values()) <= 2 * len(data)
