"""The CUDA sources compile on a machine without a GPU and without CUDA torch."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths

CUDA = Path(__file__).resolve().parents[2] / "ops" / "csrc" / "cuda"
KERNELS = sorted(CUDA.glob("*.cu"))
BINDINGS = sorted(CUDA.glob("*_binding.cpp"))
NVCC = shutil.which("nvcc")
CXX = shutil.which("g++")


def test_every_launcher_has_its_binding():
    assert [path.stem for path in KERNELS] == ["blend_bases", "masks", "roi_flatten",
                                               "shape_aware_roi_align"]  # fmt: skip
    assert [path.stem.removesuffix("_binding") for path in BINDINGS] == [p.stem for p in KERNELS]


def included(path, seen):
    """All headers that a file includes, those of this folder followed."""
    for name in re.findall(r'^#include [<"](.+)[>"]', path.read_text(), re.MULTILINE):
        if name not in seen:
            seen.add(name)
            if (path.parent / name).is_file():
                included(path.parent / name, seen)
    return seen


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_kernels_include_no_torch_header(path):
    names = included(path, set())
    assert "types.h" in names
    assert not [name for name in names if re.match(r"(torch|ATen|c10)/", name)]


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_kernels_compile_without_a_warning(path, tmp_path):
    command = [NVCC, "-std=c++17", "-O3", "-Werror", "all-warnings", "--expt-relaxed-constexpr"]
    for arch in (80, 90):
        command += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    target = tmp_path / "kernel.o"
    done = subprocess.run(
        [*command, "-c", str(path), "-o", str(target)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert target.stat().st_size > 0


@pytest.fixture(scope="module")
def cuda_headers():
    """Where nvcc, which may be a script in front of the real one, finds the toolkit's headers."""
    if NVCC is None or CXX is None:
        pytest.skip("needs nvcc and g++")
    listed = subprocess.run(
        [NVCC, "-std=c++17", "-M", str(KERNELS[0])], capture_output=True, text=True, check=True
    )
    return next(
        Path(name).parent for name in listed.stdout.split() if name.endswith("/cuda_runtime.h")
    )


def test_bindings_fit_torch_and_the_launchers(cuda_headers, tmp_path):
    """Types only: torch without CUDA lacks one generated header, and all that could be linked."""
    stub = tmp_path / "c10" / "cuda" / "impl"
    stub.mkdir(parents=True)
    (stub / "cuda_cmake_macros.h").write_text("#define C10_CUDA_BUILD_SHARED_LIBS\n")
    # Together: most of the time goes into torch's headers.
    source = tmp_path / "bindings.cpp"
    source.write_text("".join(f'#include "cuda/{path.name}"\n' for path in BINDINGS))
    # torch 2.10 and newer are in C++20, older ones in C++17.
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    command = [CXX, f"-std=c++{20 if release >= (2, 10) else 17}", "-fsyntax-only", "-Wall"]
    command += ["-Werror", "-fopenmp"]
    others = [*include_paths(), str(cuda_headers), sysconfig.get_paths()["include"]]
    for folder in (*others, str(tmp_path)):
        command += ["-isystem", folder]
    done = subprocess.run(
        [*command, f"-I{CUDA.parent}", str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
