"""Regions of memory that several processes share."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

from splitwiser.validate.runtime.arena import Arena
from splitwiser.validate.runtime.staff import Handle

CPU = torch.device("cpu")

ADD_ONE = """
import pickle, sys, torch
torch.set_num_threads(1)
from splitwiser.validate.runtime.arena import Arena
arena = Arena.open(pickle.loads(bytes.fromhex(sys.argv[1])))
arena.flat[:4] += 1
if arena.flat.is_cuda:
    torch.cuda.synchronize()
arena.close()
"""


def add_one_elsewhere(handle: Handle) -> None:
    """Adds 1 to the first four bytes of a region, in another process."""
    subprocess.run(
        [sys.executable, "-c", ADD_ONE, pickle.dumps(handle).hex()],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_what_one_process_writes_another_reads(tmp_path: Path) -> None:
    """A region has one content, whichever process writes to it."""
    arena = Arena.allocate(1000, CPU, tmp_path / "arena")
    arena.flat.fill_(7)
    add_one_elsewhere(arena.handle)
    assert arena.flat[:6].tolist() == [8, 8, 8, 8, 7, 7]
    assert len(arena.flat) == 1000


def test_views_of_a_region_share_it(tmp_path: Path) -> None:
    """A typed view of one opening sees what is written through another, without a copy."""
    arena = Arena.allocate(64, CPU, tmp_path / "arena")
    other = Arena.open(arena.handle)
    arena.flat.view(torch.float32)[3] = 2.5
    assert other.flat[12:16].view(torch.float32).item() == 2.5


def test_a_region_takes_its_room_at_once(tmp_path: Path) -> None:
    """All of a region is allocated when it is made, for nobody else to take it meanwhile."""
    Arena.allocate(1 << 20, CPU, tmp_path / "arena")
    status = (tmp_path / "arena").stat()
    assert status.st_blocks * 512 >= 1 << 20
    assert status.st_mode & 0o777 == 0o600


def test_a_region_that_does_not_fit_is_refused() -> None:
    """More than the file system holds is a MemoryError with both sizes, and leaves no file."""
    place = Path("/dev/shm")
    if not os.access(place, os.W_OK):
        pytest.skip("no /dev/shm to fill")
    path = place / f"splitwiser-test-{os.getpid()}"
    with pytest.raises(MemoryError, match=r"wanted, .* free in /dev/shm"):
        Arena.allocate(1 << 50, CPU, path)
    assert not path.exists()


def test_closing_lets_go_of_the_memory(tmp_path: Path) -> None:
    """After close, and without views, the process maps the region no more; twice is no error."""
    arena = Arena.allocate(4096, CPU, tmp_path / "arena")
    maps = Path("/proc/self/maps")
    assert str(tmp_path / "arena") in maps.read_text()
    arena.close()
    arena.close()
    assert str(tmp_path / "arena") not in maps.read_text()
    assert len(arena.flat) == 0


def test_bad_regions_are_refused(tmp_path: Path) -> None:
    """No bytes, a path that is taken, a handle of another size, and one to nothing are refused."""
    with pytest.raises(ValueError, match="not 0"):
        Arena.allocate(0, CPU, tmp_path / "arena")
    handle = Arena.allocate(10, CPU, tmp_path / "arena").handle
    with pytest.raises(FileExistsError):
        Arena.allocate(10, CPU, tmp_path / "arena")
    with pytest.raises(ValueError, match="holds 10 bytes, not 11"):
        Arena.open(handle._replace(nbytes=11))
    with pytest.raises(ValueError, match="needs a path"):
        Arena.open(Handle("cpu", 10, None, None))


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@cuda
def test_device_memory_is_shared_without_a_copy(tmp_path: Path) -> None:
    """What another process writes to device memory is read here, beyond 2**31 bytes too."""
    size = (2 << 30) + 12345
    arena = Arena.allocate(size, torch.device("cuda"), tmp_path / "unused")
    arena.flat.fill_(7)
    torch.cuda.synchronize()
    add_one_elsewhere(pickle.loads(pickle.dumps(arena.handle)))
    assert arena.flat[:6].tolist() == [8, 8, 8, 8, 7, 7]
    assert arena.flat.shape == (size,)
    assert arena.flat[-1].item() == 7
    arena.close()


@cuda
def test_device_memory_comes_back(tmp_path: Path) -> None:
    """Closing a region frees it, and what does not fit is a MemoryError with both sizes."""
    device = torch.device("cuda", 0)
    torch.zeros(1, device=device)
    before, total = torch.cuda.mem_get_info(device)
    arena = Arena.allocate(1 << 30, device, tmp_path / "unused")
    assert torch.cuda.mem_get_info(device)[0] <= before - (1 << 30)
    arena.close()
    assert torch.cuda.mem_get_info(device)[0] >= before - (64 << 20)
    with pytest.raises(MemoryError, match="wanted on cuda:0"):
        Arena.allocate(2 * total, device, tmp_path / "unused")
