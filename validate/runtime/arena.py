"""Flat regions of device memory that several processes read and write: weights and KV pools.

On the CPU a region is a file that its users map; on CUDA it is one allocation, which other
processes open by CUDA's inter-process handles. There is one copy of it in either case.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import mmap
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from splitwiser.validate.runtime.staff import Handle

_IPC_ALIGNMENT = (
    2 << 20
)  # CUDA shares whole 2 MiB pages; a smaller region would show its neighbours
_IPC_BYTES = 64  # CU_IPC_HANDLE_SIZE


class Arena:
    """One region: *flat* is a tensor of uint8 [nbytes] over it, without a copy.

    Views of *flat* may be taken at will. None of them may be used after `close()`, and on CUDA
    the allocating process closes last: CUDA leaves the other order undefined.
    """

    def __init__(self, flat: torch.Tensor, handle: Handle, release: Callable[[], None]) -> None:
        self.flat = flat
        self.handle = handle
        self._release: Callable[[], None] | None = release

    @classmethod
    def allocate(cls, nbytes: int, device: torch.device, path: Path) -> Arena:
        """A new region; its content is undefined.

        On the CPU a new file at *path* backs it, with all its room taken now: a full file system
        is a MemoryError here rather than a SIGBUS later. On CUDA *path* is not used.
        """
        if nbytes <= 0:
            raise ValueError(f"an arena holds at least 1 byte, not {nbytes}")
        if device.type == "cpu":
            return _new_file(nbytes, path)
        return _new_device_memory(nbytes, device)

    @classmethod
    def open(cls, handle: Handle) -> Arena:
        """A region that another process allocated (on CUDA: truly another; threads share one)."""
        if handle.ipc is not None:
            return _open_device_memory(handle, handle.ipc)
        if handle.path is None:
            raise ValueError(f"a handle needs a path or CUDA's bytes: {handle}")
        size = Path(handle.path).stat().st_size
        if size != handle.nbytes:
            raise ValueError(f"{handle.path} holds {size} bytes, not {handle.nbytes}")
        return _map_file(handle)

    def close(self) -> None:
        """Gives the region up in this process; once is enough, twice does no harm."""
        release, self._release = self._release, None
        self.flat = torch.empty(0, dtype=torch.uint8)
        if release is not None:
            release()


def _new_file(nbytes: int, path: Path) -> Arena:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, nbytes)
    except OSError as error:
        path.unlink()
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.ENOMEM):
            raise
        free = shutil.disk_usage(path.parent).free
        raise MemoryError(
            f"{nbytes:,} bytes of shared memory wanted, {free:,} free in {path.parent}"
        ) from None
    finally:
        os.close(descriptor)
    return _map_file(Handle("cpu", nbytes, str(path), None))


def _map_file(handle: Handle) -> Arena:
    with Path(str(handle.path)).open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), handle.nbytes)
    # The tensor holds the mapping: it is unmapped with the last view, so nothing is left to do.
    return Arena(torch.frombuffer(mapping, dtype=torch.uint8), handle, lambda: None)


def driver() -> Any:
    """The module `cuda.bindings.driver`; ImportError in one line where it is missing."""
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError:
        raise ImportError(
            "sharing GPU memory needs cuda.bindings: pip install cuda-bindings"
        ) from None


def checked(call: str, result: tuple[Any, ...]) -> Any:
    """The value that a call of `cuda.bindings` gave; RuntimeError with CUDA's name for a failure."""
    status, *values = result
    if status.value != 0:
        raise RuntimeError(f"{call} failed: {status.name}")
    return values[0] if values else None


def _enter(device: torch.device) -> torch.device:
    """Makes the primary context of *device*, the one torch uses, current in this thread."""
    index = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.set_device(index)
    torch.zeros(1, device=f"cuda:{index}")
    return torch.device("cuda", index)


def _new_device_memory(nbytes: int, device: torch.device) -> Arena:
    cuda, device = driver(), _enter(device)
    room = -(-nbytes // _IPC_ALIGNMENT) * _IPC_ALIGNMENT
    result = cuda.cuMemAlloc(room)
    if result[0] == cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        free, total = torch.cuda.mem_get_info(device)
        raise MemoryError(f"{room:,} bytes wanted on {device}, {free:,} of {total:,} free")
    pointer = int(checked("cuMemAlloc", result))
    ipc = checked("cuIpcGetMemHandle", cuda.cuIpcGetMemHandle(pointer))
    handle = Handle(str(device), nbytes, None, ctypes.string_at(ipc.getPtr(), _IPC_BYTES))

    def release() -> None:
        torch.cuda.synchronize(device)
        checked("cuMemFree", cuda.cuMemFree(pointer))

    return Arena(_tensor_over(pointer, nbytes, device), handle, release)


def _open_device_memory(handle: Handle, ipc: bytes) -> Arena:
    cuda, device = driver(), _enter(torch.device(handle.device))
    # The bytes go in by address: newer bindings no longer show the struct's only field.
    opaque = cuda.CUipcMemHandle()
    ctypes.memmove(opaque.getPtr(), ipc, _IPC_BYTES)
    flags = int(cuda.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS)
    opened = cuda.cuIpcOpenMemHandle(opaque, flags)
    pointer = int(checked("cuIpcOpenMemHandle", opened))

    def release() -> None:
        torch.cuda.synchronize(device)
        checked("cuIpcCloseMemHandle", cuda.cuIpcCloseMemHandle(pointer))

    return Arena(_tensor_over(pointer, handle.nbytes, device), handle, release)


class _DeviceBytes:
    """Device memory as torch takes it in; the tensor keeps this object alive."""

    def __init__(self, pointer: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (pointer, False),
            "strides": None,
        }


def _tensor_over(pointer: int, nbytes: int, device: torch.device) -> torch.Tensor:
    flat = torch.as_tensor(_DeviceBytes(pointer, nbytes), device=device)
    if flat.data_ptr() != pointer:
        raise RuntimeError(f"torch copied {nbytes:,} bytes on {device} rather than share them")
    return flat
