"""Files of tensors and of text, written at once or not at all, read without running anything."""

import contextlib
import hashlib
import json
import os
import stat
import uuid

import torch

from skood._version import __version__

FORMAT = 1
# What parsing a header takes is some tens of times its size.
MAX_HEADER_BYTES = 16 * 2**20


def write(path, meta, tensors):
    """Write a file of values for JSON, and of tensors by name."""
    save_file = import_safetensors("torch").save_file
    text = json.dumps({"format": FORMAT, "version": __version__, **meta})
    # As a text in JSON it may double.
    if len(text) > MAX_HEADER_BYTES // 2:
        raise ValueError(f"The {meta['class']} has more than 8 MiB of text to save.")
    seen = set()
    for name, tensor in tensors.items():
        # safetensors takes none that share memory, as a head and its network do.
        memory = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    metadata = {"skood": text, "checksum": hash_of(text.encode(), tensors)}
    with replacing(path) as draft:
        try:
            save_file(tensors, draft, metadata)
        except import_safetensors().SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error


def read(path):
    """Return the metadata and the tensors of a file that is as `save` left it."""
    read_tensors = import_safetensors("torch").load
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} is no file.")
    with reading(path):
        # Opened once: the next moment another process may have put a new file there.
        with open(path, "rb") as file:
            n_bytes = int.from_bytes(file.read(8), "little")
            if n_bytes > MAX_HEADER_BYTES:
                raise ValueError("its header is longer than 16 MiB")
            metadata = json.loads(file.read(n_bytes))["__metadata__"]
            file.seek(0)
            tensors = read_tensors(file.read())
        text = metadata["skood"]
        meta = json.loads(text)
        later = meta["format"] != FORMAT
        if not later and metadata["checksum"] != hash_of(text.encode(), tensors):
            raise ValueError("its checksum is wrong")
    if later:
        raise ValueError(
            f"{path} has format {meta['format']!r:.20} of skood {meta.get('version')!r:.20}; skood "
            f"{__version__} reads format {FORMAT}."
        )
    return meta, tensors


@contextlib.contextmanager
def reading(path):
    """Say which file is at fault, whatever damage or forgery brings about."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is damaged, or not from skood.save: {error!r:.300}") from error


def import_safetensors(name=None):
    """Return safetensors, which is optional, or a module of it."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "skood.save and skood.load need safetensors: pip install safetensors"
        ) from error
    return safetensors if name is None else getattr(safetensors, name)


@contextlib.contextmanager
def replacing(path):
    """Yield the name of a file to write, which replaces `path` at once when the block ends."""
    path = os.path.realpath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        # A pipe, a device or a folder is not ours to remove.
        raise FileExistsError(f"{path} is there and is no regular file: save to another path.")
    folder = os.path.dirname(path)
    # Without the name of the file: that may be as long as names can be.
    draft = os.path.join(folder, f".skood-{uuid.uuid4().hex}")
    try:
        with open(draft, "xb"):
            # Permissions are those of the old file, or of any new one; safetensors gives others.
            mode = os.stat(path if os.path.exists(path) else draft).st_mode
        yield draft
        os.chmod(draft, stat.S_IMODE(mode))
        _to_disk(draft)
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        raise
    if os.name == "posix":
        _to_disk(folder)


def _to_disk(path):
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hash_of(text, tensors):
    """Return a hash of bytes and of named tensors."""
    digest = hashlib.blake2b(text, digest_size=32)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def part_of(tensors, kind):
    """Return the tensors whose names start with a kind, by the rest of their names."""
    return {k.removeprefix(f"{kind}."): v for k, v in tensors.items() if k.startswith(f"{kind}.")}
