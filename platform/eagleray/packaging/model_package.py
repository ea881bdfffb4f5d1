"""A model package: everything that a service or a test needs of a model, in one verified folder.

    model.json            the card (`specs/card.py`)
    weights.safetensors   the state dict
    code/…                .py files of a user's own model, if it has any
    MANIFEST.json         size and SHA-256 of each; its own digest is the package's identity
    COMMIT                that digest; written last

Written as checkpoints are: whole or not at all. Every file is compared with the manifest before it is used.
No file of it is ever unpickled, and none of its code runs unless the caller allows it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from eagleray.errors import CheckpointError, InputError, PackageError, SpecError
from eagleray.packaging import manifest as manifests
from eagleray.packaging.carried_code import import_carried
from eagleray.packaging.manifest import MARKER, DamageError, FileEntry, Manifest
from eagleray.packaging.storage import Folder
from eagleray.packaging.tensors import SUFFIX, pack, read_tensors
from eagleray.specs import ModelCard
from eagleray.specs.card import REGISTERED
from eagleray.specs.functions import import_function

if TYPE_CHECKING:
    from torch import Tensor, nn

CARD = "model.json"
WEIGHTS = "weights"
CODE = "code"
CLAIM = ".writing"
"""There while an object store's folder is written; a name that begins with a dot is none of the package's."""
_MARKER = re.compile(rb"[0-9a-f]{64}\n")


@dataclass(frozen=True)
class ModelPackage:
    """A package whose manifest and card verified when it was opened; other files are as they are read."""

    url: str
    card: ModelCard
    manifest: Manifest = field(repr=False)
    allow_code: bool = False
    """Whether its own code, or a function of another library, may run."""

    @property
    def digest(self) -> str:
        """The package's identity: SHA-256 (hex) of its MANIFEST.json."""
        return self.manifest.digest

    def weights(self) -> dict[str, Tensor]:
        """The state dict, on the CPU. Raises: PackageError where the file is missing or differs."""
        from safetensors import SafetensorError

        with _reading(self.url):
            try:
                return read_tensors(Folder(self.url), self.manifest, WEIGHTS)
            except SafetensorError as error:
                raise DamageError(f"{WEIGHTS}{SUFFIX} is no safetensors file ({error})") from error

    def build_module(self) -> nn.Module:
        """The module with its weights, on the CPU, in evaluation mode.

        Its parameters are float32, or float64 where all floating weights are.

        Raises:
            PackageError: the weights are damaged or of another model; or the architecture is none of ours and
                `allow_code` is not set, or cannot be imported (names the missing module).
        """
        import torch

        weights, module = self.weights(), self._new_module()
        if {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float64}:
            module = module.double()
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            first = " ".join(str(error).split())[:300]
            raise PackageError(
                f"{self.url}: its weights are not those of its architecture: {first}"
            ) from error
        return module.requires_grad_(False).eval()

    def _new_module(self) -> nn.Module:
        architecture = self.card.architecture
        try:
            if not architecture.is_registered:
                self._import_code()
            build = import_function(REGISTERED, self.url, SpecError)
            return build(architecture.spec, self.card.signature)
        except InputError as error:  # the same words are bad input in a train spec, and damage here
            raise PackageError(f"{self.url}: {error}") from error
        except PackageError:
            raise
        except Exception as error:  # of the user's own code
            raise PackageError(
                f"{self.url}: architecture {architecture.function!r} failed: {type(error).__name__}: {error}"
            ) from error

    def _import_code(self) -> None:
        """Let the package's own code be imported, as this process's first choice."""
        require_allowed(self)
        names = [name for name in self.manifest.files if name.startswith(f"{CODE}/")]
        folder = Folder(self.url)
        with _reading(self.url):
            import_carried(
                {
                    name.removeprefix(f"{CODE}/"): self.manifest.check(name, manifests.read(folder, name))
                    for name in names
                }
            )


@dataclass(frozen=True)
class PackedModel:
    """The files of a package that is not written yet."""

    files: Mapping[str, bytes]
    manifest: Manifest

    @classmethod
    def of(cls, card: ModelCard, weights: Mapping[str, Tensor], code: Folder | None = None) -> PackedModel:
        """The files of `write_package`; the weights are copied once. Raises: PackageError."""
        files = {
            CARD: (card.model_dump_json(indent=2) + "\n").encode(),
            **_code_files(code),
        }
        try:
            files[WEIGHTS + SUFFIX] = pack(weights)
        except TypeError as error:
            raise PackageError(f"model {card.name!r} cannot be packaged: weights: {error}") from error
        return cls(files, Manifest({name: FileEntry.of(data) for name, data in files.items()}))

    def write(self, folder: Folder) -> None:
        """Write the package to `folder`, whole or not at all. Raises: PackageError."""
        try:
            self._write(folder)
        except OSError as error:
            raise self.unwritable(folder.url, error) from error

    def unwritable(self, url: str, error: OSError) -> PackageError:
        """For a storage that failed."""
        reason = os.strerror(error.errno) if error.errno else str(error)
        return PackageError(
            f"the model package cannot be written to {url}: {reason}; make room there, or give the right to "
            "write, then publish again"
        )

    def _write(self, folder: Folder) -> None:
        if self._is_there(folder):
            return
        if folder.can_rename:
            self._write_aside(folder)
        else:
            self._write_in_place(folder)

    def _write_aside(self, folder: Folder) -> None:
        """Beside it, under a name of this writer's own; then the whole takes the folder's name at once."""
        parent, _, name = folder.url.rpartition("/")
        above, staged = Folder(parent), f".tmp-{name}-{secrets.token_hex(4)}"
        try:
            self._write_files(above.child(staged))
            above.move(staged, name)
        except BaseException as error:  # Ctrl-C too leaves nothing half done
            with contextlib.suppress(OSError):  # it counts for nobody
                above.remove(staged)
            if not isinstance(error, OSError) or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if not self._is_there(folder):  # the same package by a writer who was quicker is as good
                raise _not_empty(folder) from None

    def _write_in_place(self, folder: Folder) -> None:
        """Where nothing can be renamed: one writer at a time has the folder, COMMIT makes it count."""
        if folder.list() or not folder.create(CLAIM, b""):
            raise _not_empty(folder)
        if folder.list() != [CLAIM]:  # another writer came and went between the two
            folder.remove(CLAIM)
            raise _not_empty(folder)
        try:
            self._write_files(folder)
            folder.remove(CLAIM)
        except BaseException:  # Ctrl-C too leaves nothing half done
            parent, _, name = folder.url.rpartition("/")
            with contextlib.suppress(OSError):  # not committed, it does not count
                Folder(parent).remove(name)
            raise

    def _is_there(self, folder: Folder) -> bool:
        """Whether this very package was written before. Raises: PackageError where another one was."""
        marker = folder.read_bytes(MARKER) if folder.exists(MARKER) else b""
        if not _MARKER.fullmatch(marker):  # none, or one that was being written when the power went
            return False
        if marker != _marker(self.manifest):
            raise PackageError(f"{folder.url} holds another model package already; write to a new folder")
        return True

    def _write_files(self, folder: Folder) -> None:
        """Every file, COMMIT last."""
        for name, data in {**self.files, manifests.NAME: self.manifest.to_bytes()}.items():
            folder.write_new(name, data)
        folder.write_new(MARKER, _marker(self.manifest))
        for inner in sorted({os.path.dirname(name) for name in (*self.files, "")}, reverse=True):
            folder.sync(inner)


def write_package(
    folder: Folder, card: ModelCard, weights: Mapping[str, Tensor], code: Folder | None = None
) -> Manifest:
    """Write a package to `folder`; when this returns it is on stable storage.

    Of several processes that write to one folder at once, none breaks another's package: on disk the first
    to be done has the folder, on an object store the first to begin.

    Args:
        folder: Where; on disk it appears there whole, on an object store it counts once COMMIT is there. It
            need not exist, and holds nothing else.
        card: Becomes model.json.
        weights: The state dict: tensors of any device, dense.
        code: Folder whose .py files go into `code/`; its other files are left out.

    Raises:
        PackageError: another package is there, or something else, or (on an object store) another process
            writes there; or the storage failed. Nothing of this one is left.
    """
    packed = PackedModel.of(card, weights, code)
    packed.write(folder)
    return packed.manifest


def open_package(
    url: str | os.PathLike[str], *, allow_code: bool = False, digest: str | None = None
) -> ModelPackage:
    """The package at `url` (a local path or any fsspec URL), its manifest and card verified.

    Weights and code are compared with the manifest as they are read.

    Args:
        url: The package's folder.
        allow_code: Let an architecture that is none of ours run.
        digest: The identity that it must have, where the caller knows it.

    Raises:
        PackageError: nothing is there, it was not committed, a file is missing or not listed, the manifest or
            the card is damaged, the identity is another one, or the architecture is not allowed.
    """
    folder = Folder(url)
    with _reading(folder.url):
        if not folder.exists():
            raise PackageError(
                f"{folder.url}: there is no model package; was it removed, or is it elsewhere?"
            )
        if not folder.exists(MARKER):
            raise DamageError("was not committed: its publisher was stopped half-way")
        manifest = manifests.verify_names(folder)
        if manifests.read(folder, MARKER) != _marker(manifest):
            raise DamageError(f"{MARKER} does not match its manifest")
        if missing := {CARD, WEIGHTS + SUFFIX} - set(manifest.files):
            raise DamageError(f"{min(missing)} is missing")
        card = _card(folder.url, manifest.check(CARD, manifests.read(folder, CARD)))
    if digest is not None and manifest.digest != digest:
        raise PackageError(
            f"{folder.url}: its identity is {manifest.digest[:16]}, and {digest[:16]} was asked for: the "
            "package was replaced after it was published; publish it again"
        )
    package = ModelPackage(folder.url, card, manifest, allow_code)
    if not card.architecture.is_registered:
        require_allowed(package)
    return package


def require_allowed(package: ModelPackage) -> None:
    """Raises: PackageError where the package's own code may not run; it names what would."""
    if package.allow_code:
        return
    function = package.card.architecture.function
    carried = sorted(name for name in package.manifest.files if name.startswith(f"{CODE}/"))
    where = f"it needs {carried[0]} of the package" if carried else "it needs another library's code"
    raise PackageError(
        f"{package.url}: architecture {function!r} is none of eagleray's own: {where}, which runs only "
        "where it is allowed: deploy with allow_code = true by an admin key"
    )


def _card(url: str, data: bytes) -> ModelCard:
    try:
        return ModelCard.model_validate_json(data)
    except ValueError as error:
        first = "; ".join(str(error).splitlines()[1:3]).strip()
        raise PackageError(
            f"{url}: {CARD} is not a card that this eagleray reads ({first}); publish it again"
        ) from error


def _code_files(code: Folder | None) -> dict[str, bytes]:
    if code is None:
        return {}
    names = [name for name in code.files() if name.endswith(".py") and not name.startswith(".")]
    return {f"{CODE}/{name}": code.read_bytes(name) for name in names}


def _not_empty(folder: Folder) -> PackageError:
    return PackageError(
        f"{folder.url} is not empty and holds no whole model package: another process writes one, or was "
        "ended half-way; write to a new folder, or remove this one first"
    )


def _marker(manifest: Manifest) -> bytes:
    return f"{manifest.digest}\n".encode()


@contextlib.contextmanager
def _reading(url: str) -> Iterator[None]:
    """What goes wrong inside, as a PackageError."""
    try:
        yield
    except DamageError as damage:
        raise PackageError(
            f"model package {url}: {damage}; take another copy of it, or publish it again"
        ) from damage
    except CheckpointError as error:  # the storage's own trouble, in words already
        raise PackageError(str(error)) from error
    except OSError as error:
        raise PackageError(f"model package {url} cannot be read: {error.strerror or error}") from error
