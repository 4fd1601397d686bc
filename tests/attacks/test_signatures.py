"""Who signed what, and what was changed since: no forger of an export, a model card or a cache goes unnoticed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import create_model

import ops.export.signing
from kdcore.errors import Refused
from ops.__main__ import main
from ops.export.keys import keys, read_private, read_public
from ops.export.signing import SIGNATURE, Statement, examine, sign, trusted_keys
from pipelines.cache.manifest import load_manifest
from tests.ops.export.test_lineage import weights
from tests.pipelines.cache.test_store import build, plan


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """An export of a student of a cached teacher, and the keys of two people; nothing is signed."""
    digest = weights(tmp_path / "export" / "model.safetensors", 1.0)
    weights(tmp_path / "run" / "student.safetensors", 1.0)
    build(tmp_path / "cache")
    cache = {"dir": str(tmp_path / "cache"), "digest": load_manifest(tmp_path / "cache").digest}
    content = {"run": "r", "run_dir": str(tmp_path / "run"), "method": "kd", "model": "resnet18", "weights": digest}
    content |= {"teachers": [{"model": "big", "weights": "a" * 64, "cache": cache}]}
    (tmp_path / "export" / "lineage.json").write_text(json.dumps(content))
    (tmp_path / "export" / "README.md").write_text("# the model card, top-1 97.0 %")
    for name in ("maria", "mallory"):
        assert keys(str(tmp_path / f"{name}.pem")) == 0
    return tmp_path


def verify(place: Path, *names: str, thorough: bool = False) -> int:
    trust = [str(place.parent / f"{name}.pub") for name in names]
    words = ["lineage", str(place), *(["--trust", *trust] if trust else []), *(["--thorough"] if thorough else [])]
    return main(words)


def test_a_chain_that_is_signed_is_verified_by_one_command(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cache", "export"):
        assert main(["sign", str(chain / name), "--key", str(chain / "maria.pem")]) == 0
    assert "README.md" in capsys.readouterr().out
    assert verify(chain / "export", "mallory", "maria", thorough=True) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("maria") == 2  # the export and the cache
    assert said.count("through the") == 2  # the run and the teacher
    assert verify(chain / "cache", "maria") == 0
    shutil.rmtree(chain / "run")
    (chain / "export").rename(chain / "elsewhere")
    assert verify(chain / "elsewhere", "maria") == 0


def test_what_nobody_trusted_has_signed_is_refused(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(chain / "export") == 0
    assert verify(chain / "export", "maria") == 2
    assert "is signed by nobody" in capsys.readouterr().err
    sign(str(chain / "export"), str(chain / "mallory.pem"))
    assert verify(chain / "export", "maria") == 2
    assert "not trusted" in capsys.readouterr().err
    assert verify(chain / "export") == 0  # nobody was asked for
    assert "not trusted" in " ".join(capsys.readouterr().out.split())


def replace_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


ATTACKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a better number in the model card": (
        lambda at: replace_text(at / "export/README.md", "97.0", "99.0"),
        "README.md was changed",
    ),
    "a file more": (lambda at: (at / "export/model.onnx").write_bytes(b"x"), "model.onnx is not signed"),
    "a linked package, which Python would import": (
        lambda at: (at / "export/numpy").symlink_to(at / "run", target_is_directory=True),
        "numpy is a link, which no signature covers",
    ),
    "a link to nothing yet": (
        lambda at: (at / "export/onnxruntime.py").symlink_to("later.py"),
        "onnxruntime.py is a link",
    ),
    "a file replaced by a link to its like": (lambda at: link_away(at / "export/README.md"), "README.md is a link"),
    "a pipe": (lambda at: os.mkfifo(at / "export/pipe"), "pipe is neither a file nor a folder"),
    "a file less": (lambda at: (at / "export/README.md").unlink(), "README.md is gone"),
    "other weights": (lambda at: weights(at / "export/model.safetensors", 2.0), "is not what this network was made of"),
    "another lineage": (
        lambda at: replace_text(at / "export/lineage.json", "resnet18", "resnet50"),
        "lineage.json was changed",
    ),
    "digests changed with the files": (
        lambda at: replace_text(at / "export" / SIGNATURE, '"README.md": "', '"README.md": "0'),
        "was not made by maria",
    ),
    "a later date": (lambda at: replace_text(at / "export" / SIGNATURE, '"date": "2', '"date": "3'), "was not made by"),
    "the signature of the cache": (
        lambda at: shutil.copy(at / "cache" / SIGNATURE, at / "export"),
        "the signature is that of another cache",
    ),
    "no signature at all": (lambda at: (at / "export" / SIGNATURE).unlink(), "is signed by nobody"),
    "a signature that is none": (
        lambda at: (at / "export" / SIGNATURE).write_text("{}"),
        "was not written by `sign`",
    ),
    "a signature cut off": (lambda at: os.truncate(at / "export" / SIGNATURE, 90), "was not written by `sign`"),
    "another cache in its place": (lambda at: build(at / "cache", plan(num_views=3)), "is not what this network"),
    "another key in the signature": (
        lambda at: swap_key(at / "export" / SIGNATURE, at / "mallory.pub"),
        "was not made by mallory",
    ),
    "signed anew by another": (lambda at: sign(str(at / "export"), str(at / "mallory.pem")), "not trusted"),
}


def link_away(path: Path) -> None:
    """Move a file elsewhere, and leave a link to it."""
    path.rename(path.parent.parent / path.name)
    path.symlink_to(path.parent.parent / path.name)


def swap_key(path: Path, public: Path) -> None:
    """Claim that somebody else has signed."""
    content = json.loads(path.read_text())
    lines = public.read_text().splitlines()
    content["public_key"] = base64.b64encode(base64.b64decode("".join(lines[1:-1]))[-32:]).decode()
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_by_name(chain: Path, attack: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cache", "export"):
        sign(str(chain / name), str(chain / "maria.pem"))
    change, message = ATTACKS[attack]
    change(chain)
    trusted = ("maria", "mallory") if "another key" in attack else ("maria",)
    assert verify(chain / "export", *trusted) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_a_forged_signature_further_down_the_chain_is_refused(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The newest link's signature is good, and covers what is recorded of the cache, but not the cache's own."""
    for name in ("cache", "export"):
        sign(str(chain / name), str(chain / "maria.pem"))
    replace_text(chain / "cache" / SIGNATURE, '"date": "2', '"date": "3')
    assert verify(chain / "export", "maria") == 2
    said = capsys.readouterr().err
    assert f"{chain / 'cache'}: " in said
    assert "was not made by maria" in said


def test_a_private_key_is_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        keys(str(tmp_path / "maria.pem"))
    finally:
        os.umask(before)
    path = tmp_path / "maria.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE" not in (tmp_path / "maria.pub").read_bytes()
    with pytest.raises(Refused, match=r"maria\.pub exists, and may be"):
        keys(str(path))
    path.chmod(0o640)
    with pytest.raises(Refused, match=r"may be read by others; .* chmod 600"):
        read_private(path)


def test_openssls_keys_do_as_well_and_other_keys_do_not(chain: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=chain)

    openssl("genpkey", "-algorithm", "ed25519", "-out", "olga.pem")
    openssl("pkey", "-in", "olga.pem", "-pubout", "-out", "olga.pub")
    (chain / "olga.pem").chmod(0o600)
    assert main(["sign", str(chain / "export"), "--key", str(chain / "olga.pem")]) == 0
    assert verify(chain / "export", "olga") == 0
    openssl("pkey", "-in", "olga.pem", "-aes256", "-passout", "pass:x", "-out", "locked.pem")
    openssl("genpkey", "-algorithm", "ed448", "-out", "other.pem")
    openssl("pkey", "-in", "other.pem", "-pubout", "-out", "other.pub")
    for name, message in {"locked": "needs a password", "other": "is not an Ed25519 key", "olga": ""}.items():
        (chain / f"{name}.pem").chmod(0o600)
        if message:
            with pytest.raises(Refused, match=message):
                read_private(chain / f"{name}.pem")
    with pytest.raises(Refused, match="is not an Ed25519 key"):
        read_public(chain / "other.pub")
    with pytest.raises(Refused, match="holds no public key"):
        read_public(chain / "olga.pem")
    (chain / "maria.pub").chmod(0o600)
    with pytest.raises(Refused, match="holds no private key"):
        read_private(chain / "maria.pub")


def test_what_a_signature_cannot_cover_is_not_signed(chain: Path) -> None:
    (chain / "export" / "numpy").symlink_to(chain / "run", target_is_directory=True)
    with pytest.raises(Refused, match=r"numpy is a link, which no signature covers; remove it"):
        sign(str(chain / "export"), str(chain / "maria.pem"))
    assert not (chain / "export" / SIGNATURE).exists()


def test_what_is_signed_is_read_under_the_lease(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that another process is writing meanwhile is not signed half old, half new."""
    held = []
    lease, read = chain / "export" / ".work.lease", ops.export.signing.covered
    monkeypatch.setattr(ops.export.signing, "covered", lambda folder: held.append(lease.exists()) or read(folder))
    monkeypatch.setattr(ops.export.signing, "refuse_others", lambda folder: held.append(lease.exists()))
    sign(str(chain / "export"), str(chain / "maria.pem"))
    assert held == [True, True]


def test_nobodys_public_key_is_replaced(tmp_path: Path) -> None:
    """Private keys of two names may have one public key's name: that of the first stays, and nothing is made."""
    keys(str(tmp_path / "maria.key"))
    before = (tmp_path / "maria.pub").read_bytes()
    with pytest.raises(Refused, match=r"maria\.pub exists, and may be the public key of another"):
        keys(str(tmp_path / "maria.pem"))
    assert (tmp_path / "maria.pub").read_bytes() == before
    assert not (tmp_path / "maria.pem").exists()


def test_a_statement_of_another_format_is_none(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signed by its trusted signer, but as something else: what a later version means by it is not known here."""
    of_another = create_model("Statement", __base__=Statement, format=(str, "stillhouse signature 2"))
    with monkeypatch.context() as later:
        later.setattr(ops.export.signing, "Statement", of_another)
        sign(str(chain / "export"), str(chain / "maria.pem"))
    found = examine(chain / "export", trusted_keys([str(chain / "maria.pub")]))
    assert found.problem == "DAMAGED: signature.json was not written by `sign`"


def test_a_folder_that_is_neither_is_not_signed(chain: Path) -> None:
    with pytest.raises(Refused, match="is neither an export nor a finished cache"):
        sign(str(chain / "run"), str(chain / "maria.pem"))
    assert [path.name for path in (chain / "run").iterdir()] == ["student.safetensors"]
