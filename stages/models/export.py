"""Writes a trained network as ONNX with its model.toml, and checks the file against the network.

Axes     [N, channel, z, y, x] for a flood-filling network, [N, channel, y, x] for a mask network; N is dynamic, the rest static.
Units    logits in, logits out; float32.
Method   opset 17 through torch's tracing exporter; the check runs onnxruntime on random input in batches of 1 and 3.
"""

import copy
import hashlib
import json
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent


def write_onnx(net: torch.nn.Module, inputs: dict[str, tuple[int, ...]], path: Path) -> float:
    """Exports with the given per-item input shapes; returns the largest |difference| of onnxruntime to torch in float32."""
    import onnxruntime as ort

    net = copy.deepcopy(net).float().eval().to(memory_format=torch.contiguous_format)
    generator = torch.Generator().manual_seed(0)
    example = tuple(torch.randn((1, *shape), generator=generator) for shape in inputs.values())
    axes = {name: {0: "N"} for name in (*inputs, "logits")}
    torch.onnx.export(net, example, str(path), input_names=list(inputs), output_names=["logits"], dynamic_axes=axes,
                      opset_version=17, dynamo=False)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for n in (1, 3):
        batch = [torch.randn((n, *shape), generator=generator) for shape in inputs.values()]
        with torch.no_grad():
            expected = net(*batch).numpy()
        got = session.run(["logits"], {k: b.numpy() for k, b in zip(inputs, batch)})[0]
        assert got.shape == expected.shape
        worst = max(worst, float(np.abs(got - expected).max()))
    return worst


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a file that write_onnx made, by their names in the network."""
    import onnx
    from onnx import numpy_helper

    return {w.name: torch.tensor(numpy_helper.to_array(w).copy()) for w in onnx.load(str(path)).graph.initializer}


def _toml(value) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return json.dumps(value)  # strings, numbers: the same text in TOML


def write_model(name: str, net: torch.nn.Module, inputs: dict[str, tuple[int, ...]], manifest: dict, folder: Path | None = None):
    """Writes <folder>/model.onnx and model.toml. `manifest` holds plain keys first, then tables."""
    folder = folder or HERE / name
    folder.mkdir(parents=True, exist_ok=True)
    worst = write_onnx(net, inputs, folder / "model.onnx")
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    head = {"name": name, "kind": manifest["kind"], "file": "model.onnx", "sha256": digest, "licence": "MIT", **manifest}
    lines = [f"{k} = {_toml(v)}" for k, v in head.items() if not isinstance(v, dict)]
    for table, content in head.items():
        if isinstance(content, dict):
            lines += ["", f"[{table}]"] + [f"{k} = {_toml(v)}" for k, v in content.items()]
    (folder / "model.toml").write_text("\n".join(lines) + "\n")
    print(f"wrote {folder} (onnxruntime differs from torch by at most {worst:.1e})", flush=True)
