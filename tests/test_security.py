"""What SECURITY.md promises of code and of the network; its other promises have tests of their own.

Those are: formats and sizes of images in tests/imaging/test_decoding.py, rasters in
tests/imaging/rasters/test_reading.py, models that bring code in tests/backbones/test_kinds.py,
files of others in tests/utils/test_files.py and where each command is tested, whole files in
tests/fuzz/test_kills.py, checksums in tests/fuzz/test_records.py, strings of files in
tests/cli/test_streams.py and tests/evaluation/test_table.py.
"""

import ast
import pickle
import shutil
import socket
from pathlib import Path

import pytest
import torch

import nerve_fast as nf
from nerve_fast.cli import main as cli
from nerve_fast.tiny import MODELS
from nerve_fast.tiny.scenes import generate

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "nerve_fast").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])

FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "socket", "urllib"}
FORBIDDEN_CALLS = {"eval", "exec", "__import__", "compile"}
STARTERS = {
    "nerve_fast/imaging/fonts.py",  # fc-list, which tells the fonts of the system.
    "nerve_fast/utils/provenance.py",  # git, which tells the commit of a checkout.
    "kernels/launch.py",  # Nothing: it names the errors of Triton's compiler.
    "kernels/compiled.py",  # Triton's own disassembler, in reports of compiled kernels.
}


class Payload:
    """Unpickled by Python itself, it makes a file."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return Path.touch, (Path(self.proof),)


def test_nothing_here_evaluates_unpickles_or_connects():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                modules = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules = {(node.module or "").partition(".")[0]}
            else:
                modules = set()
            # urllib.parse quotes names.
            if isinstance(node, ast.ImportFrom) and node.module == "urllib.parse":
                modules = set()
            assert not modules & FORBIDDEN_MODULES, where
            assert "subprocess" not in modules or path.relative_to(ROOT).as_posix() in STARTERS, (
                where
            )
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in FORBIDDEN_CALLS, where
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                options = {option.arg: option.value for option in node.keywords}
                called = ast.unparse(node.func)
                assert called not in ("os.system", "os.popen", "os.startfile"), where
                if called == "torch.load":
                    assert ast.unparse(options["weights_only"]) == "True", where
                if called == "np.load":
                    assert "allow_pickle" not in options, where


@pytest.mark.parametrize("kind", ["clip", "unet", "vae", "single file"])
@pytest.mark.parametrize("protocol", ["pickle", "torch"])
def test_no_model_file_runs_what_it_holds(tmp_path, kind, protocol):
    models, proof = shutil.copytree(MODELS, tmp_path / "models"), tmp_path / "proof"
    payload = {"weight": Payload(proof)}

    def write(path):
        if protocol == "torch":
            torch.save(payload, path)
        else:
            path.write_bytes(pickle.dumps(payload))

    options = {"clip": models / "clip", "diffusion": models / "diffusion"}
    if kind == "clip":
        (models / "clip" / "model.safetensors").unlink()
        write(models / "clip" / "pytorch_model.bin")
    elif kind == "single file":
        write(tmp_path / "model.ckpt")
        options["diffusion"] = tmp_path / "model.ckpt"
    else:
        folder = models / "diffusion" / kind
        (folder / "diffusion_pytorch_model.safetensors").unlink()
        write(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(nf.InputError) as refused:
        nf.NervePipeline.from_pretrained(**options, device="cpu")
    assert "\n" not in str(refused.value)
    assert not proof.exists()
    # And it is a payload.
    pickle.loads(pickle.dumps(payload))
    assert proof.exists()


def test_with_local_models_nothing_is_sent(tmp_path, monkeypatch, capsys):
    def refuse(*given, **named):
        pytest.fail("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    path = tmp_path / "scene.png"
    generate(970_010, 64)[0].save(path)
    given = ("--labels", "grass; ball", "--models", "tiny", "--device", "cpu", "-o")
    assert cli.main(["segment", str(path), *given, str(tmp_path / "out")]) == 0
    flags = ("--dataset", "tiny", "--models", "tiny", "--device", "cpu", "--limit", "1", "-o")
    assert cli.main(["evaluate", *flags, str(tmp_path / "evaluation")]) == 0
    for url in ("https://example.com/a.jpg", "file:///etc/hostname", "ftp://example.com/a.png"):
        capsys.readouterr()
        assert cli.main(["segment", url, *given, str(tmp_path / "out")]) == 2
        assert "no such file" in capsys.readouterr().err
