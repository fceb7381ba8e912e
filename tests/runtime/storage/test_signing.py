"""A bundle that is signed is what its maker signed, or it is refused."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from commands import done, mmgen
from manifests import edit

from mmgen.runtime import MmgenError, load
from mmgen.runtime.builds.signed_bundle import sign_bundle
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.hashes import sha256
from mmgen.runtime.storage.schema import MANIFEST
from mmgen.runtime.storage.signatures import signature_of

pytest.importorskip("cryptography", reason="the package cryptography is not installed")
if shutil.which("ssh-keygen") is None:
    pytest.skip("ssh-keygen is not here", allow_module_level=True)


def keys(folder: Path, name: str, passphrase: str = "", kind: str = "ed25519") -> tuple[Path, Path]:
    """A private and a public key, as people make them."""
    private = folder / name
    make = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "somebody", "-f", str(private)]
    subprocess.run(make, check=True, stdin=subprocess.DEVNULL)
    return private, private.with_name(f"{name}.pub")


def nobody() -> str:
    raise AssertionError("a passphrase was asked for")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return keys(tmp_path_factory.mktemp("keys"), "maker")


@pytest.fixture
def signed(bundle_copy: Path, pair: tuple[Path, Path]) -> Path:
    for folder in ("engines", "optimised"):
        shutil.rmtree(bundle_copy / folder, ignore_errors=True)
    edit(bundle_copy, lambda record: None)
    assert sign_bundle(bundle_copy, pair[0], nobody) == [bundle_copy / "bundle.json.sig"]
    return bundle_copy


def test_a_manifest_that_leaves_fields_out_as_older_ones_do_is_signed_as_it_is(
    bundle_copy: Path, pair: tuple[Path, Path]
) -> None:
    edit(bundle_copy, lambda record: [record["media"].pop("rate"), record.pop("made_up")])
    sign_bundle(bundle_copy, pair[0], nobody)
    assert read_bundle(bundle_copy, public_key=pair[1]).media.rate is None


def test_what_was_signed_plays(signed: Path, pair: tuple[Path, Path]) -> None:
    with load(signed, "ort-cpu", threads=1, public_key=pair[1]) as generator:
        assert generator.generate(prompt="red", steps=1).media.any()
    with load(signed, "ort-cpu", threads=1) as generator:
        assert generator.bundle.public_key is None, "a signature is no duty"


def test_a_bundle_without_a_signature_is_refused(signed: Path, pair: tuple[Path, Path]) -> None:
    signature_of(signed / MANIFEST).unlink()
    with pytest.raises(MmgenError, match=r"bundle\.json is not signed; do not use it, or ask its maker"):
        load(signed, "ort-cpu", public_key=pair[1])


def test_a_manifest_that_was_changed_is_refused_even_with_its_checksum_made_right(
    signed: Path, pair: tuple[Path, Path]
) -> None:
    edit(signed, lambda record: record["defaults"].update(guidance=3.0))
    assert read_bundle(signed).defaults.guidance == 3.0
    with pytest.raises(MmgenError, match=r"was not signed with the key of \S*maker\.pub, or has changed since"):
        load(signed, "ort-cpu", public_key=pair[1])


def test_a_file_that_was_changed_is_refused_even_with_its_hash_made_right(
    signed: Path, pair: tuple[Path, Path]
) -> None:
    weights = signed / "graphs/step.onnx.data"
    (-np.fromfile(weights, np.float16)).tofile(weights)
    with pytest.raises(MmgenError, match=r"step\.onnx\.data: sha256"):
        load(signed, "ort-cpu", public_key=pair[1])
    edit(signed, lambda record: record["graphs"]["step"].update(data_sha256=sha256(weights)))
    with pytest.raises(MmgenError, match="was not signed with the key"):
        load(signed, "ort-cpu", public_key=pair[1])


def test_the_key_of_somebody_else_is_refused(signed: Path, tmp_path: Path) -> None:
    _, other = keys(tmp_path, "other")
    with pytest.raises(MmgenError, match=r"not signed with the key of \S*other\.pub"):
        read_bundle(signed, public_key=other)


@pytest.mark.parametrize("content", [b"", b"no signature", b"AAAA", b"\xff" * 88])
def test_a_signature_that_is_none_is_refused(signed: Path, pair: tuple[Path, Path], content: bytes) -> None:
    signature_of(signed / MANIFEST).write_bytes(content)
    with pytest.raises(MmgenError, match=r"is no signature|was not signed with the key"):
        read_bundle(signed, public_key=pair[1])


def test_files_that_are_not_compared_prove_nothing(signed: Path, pair: tuple[Path, Path]) -> None:
    with pytest.raises(MmgenError, match="a signature proves nothing of files that aren't compared"):
        load(signed, "ort-cpu", verify=False, public_key=pair[1])
    with pytest.raises(MmgenError, match="what is built here is not signed yet"):
        load(signed, "ort-cpu", build=True, public_key=pair[1])


def test_graphs_that_were_optimised_here_are_not_taken(signed: Path, pair: tuple[Path, Path]) -> None:
    """Nobody signs them, and checksums are no proof."""
    load(signed, "ort-cpu", threads=1, build=True).close()
    kept = next((signed / "optimised").glob("*/graph.onnx"))
    kept.write_bytes(b"another graph")
    with load(signed, "ort-cpu", threads=1, public_key=pair[1]) as generator:
        assert generator.generate(prompt="red", steps=1).media.any()


def test_keys_that_are_none_and_passphrases(signed: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    locked, public = keys(tmp_path, "locked", "secret")
    sign_bundle(signed, locked, lambda: "secret")
    read_bundle(signed, public_key=public)
    with pytest.raises(MmgenError, match="is no private key of Ed25519, or its passphrase is another"):
        sign_bundle(signed, locked, lambda: "guessed")
    rsa, rsa_public = keys(tmp_path, "rsa", kind="rsa")
    for private in (rsa, pair[1], signed / "golden.npz"):
        with pytest.raises(MmgenError, match="is no private key of Ed25519"):
            sign_bundle(signed, private, nobody)
    for public in (rsa_public, pair[0], signed / "golden.npz"):
        with pytest.raises(MmgenError, match="is no public key of Ed25519"):
            read_bundle(signed, public_key=public)
    read_bundle(signed, public_key=tmp_path / "locked.pub")


def test_the_command_line(signed: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = map(str, pair)
    assert done("sign", "b.mmgen", "--key", private).stdout.strip() == "b.mmgen/bundle.json.sig"
    request = ("--prompt", "red", "--steps", "1", "--backend", "ort-cpu", "-o", "x.png")
    done("generate", "b.mmgen", *request, "--public-key", public)
    done("inspect", "b.mmgen", "--public-key", public)
    _, other = keys(tmp_path, "another")
    refused = mmgen("generate", "b.mmgen", *request, "--public-key", str(other))
    assert refused.exit_code == 1 and "not signed with the key" in refused.output
