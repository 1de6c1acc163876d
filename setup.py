"""Build of MMPlus: three import packages, an optional compiled library, and the zoo's resources.

Settings (environment variables):

* ``MMPLUS_WITH_OPS=0``: build without the compiled library (every op has a plain PyTorch twin).
* ``MMPLUS_WITH_OPS=1``: fail where the library cannot be built, instead of going on without it.
* ``FORCE_CUDA=1``: build the CUDA kernels even where no GPU is seen; ``FORCE_CUDA=0``: never.
* ``TORCH_CUDA_ARCH_LIST``: the GPUs to build for; unset: those here, or all of torch's if none is.
* ``MAX_JOBS``: how many compilers run at once.

Static metadata is in ``pyproject.toml``; build with ``--no-build-isolation`` so that the library is
compiled against the torch that will load it.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_ext import build_ext as plain_build_ext
from setuptools.command.install_lib import install_lib

ROOT = Path(__file__).resolve().parent
CSRC = Path("ops/csrc")
RESOURCES = ("configs", "tools", "model-index.yml", "dataset-index.yml")
RESOURCE_HOME = Path("mmdet_plus/.mim")
SKIPPED_NAMES = {"__pycache__", ".DS_Store"}


def say(message: str) -> None:
    """Print one line that survives pip's filtering as far as anything does."""
    print(f"mmplus: {message}", file=sys.stderr, flush=True)


def wants_ops() -> str:
    """Return ``'no'``, ``'must'`` or ``'try'`` for the compiled library."""
    value = os.environ.get("MMPLUS_WITH_OPS", "").strip().lower()
    if value in ("0", "false", "no", "off"):
        return "no"
    return "must" if value in ("1", "true", "yes", "on") else "try"


def cuda_wanted(torch) -> bool:
    """Decide whether CUDA kernels are built, and refuse what cannot work."""
    forced = os.environ.get("FORCE_CUDA", "").strip()
    if forced == "0":
        return False
    from torch.utils.cpp_extension import CUDA_HOME

    if forced == "1":
        if torch.version.cuda is None:
            raise SystemExit(
                f"mmplus: FORCE_CUDA=1, but torch {torch.__version__} is a build without CUDA. "
                "Install a CUDA build of torch first, or unset FORCE_CUDA."
            )
        if CUDA_HOME is None:
            raise SystemExit(
                "mmplus: FORCE_CUDA=1, but no nvcc was found. Install the CUDA "
                f"{torch.version.cuda} toolkit and set CUDA_HOME, or unset FORCE_CUDA."
            )
        return True
    return torch.version.cuda is not None and CUDA_HOME is not None and torch.cuda.is_available()


def all_architectures(codes: list[str]) -> str:
    """Turn torch's own list (``["sm_80", "sm_90"]``) into one for builds (``"8.0;9.0+PTX"``)."""
    numbers = sorted({int(m[1]) for code in codes if (m := re.fullmatch(r"sm_(\d+)", code))})
    return ";".join(f"{number // 10}.{number % 10}" for number in numbers) + "+PTX"


def extension_sources(with_cuda: bool) -> list[str]:
    """Every source under ``ops/csrc``; a new kernel file needs no change here."""
    patterns = ["*.cpp", "cpu/**/*.cpp"]
    if with_cuda:
        patterns += ["cuda/**/*.cpp", "cuda/**/*.cu"]
    found: set[str] = set()
    for pattern in patterns:
        found.update(p.relative_to(ROOT).as_posix() for p in (ROOT / CSRC).glob(pattern))
    return sorted(found)


def compiled_extension():
    """Return ``(ext_modules, build_ext class)``; no modules where there can be no ops."""
    mode = wants_ops()
    if mode == "no":
        say("MMPLUS_WITH_OPS=0: built without the compiled ops.")
        return [], plain_build_ext
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension
    except ImportError as error:
        if mode == "must":
            raise SystemExit(
                f"mmplus: MMPLUS_WITH_OPS=1 needs torch for the build: {error}"
            ) from error
        say(f"built without the compiled ops: torch cannot be imported here ({error}).")
        return [], plain_build_ext

    with_cuda = cuda_wanted(torch)
    if with_cuda and not torch.cuda.is_available():
        # torch would look for the GPUs of this machine and crash on finding none.
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", all_architectures(torch.cuda.get_arch_list()))
    macros = [("MMPLUS_TORCH_VERSION", f'"{torch.__version__}"')]
    flags: dict[str, list[str]] = {"cxx": ["-O3", "-ffp-contract=fast", "-fvisibility=hidden"]}
    link: list[str] = []
    if sys.platform == "win32":
        flags = {"cxx": ["/O2"]}
    elif sys.platform.startswith("linux"):
        # at::parallel_for is a header template: without OpenMP here it would run on one thread.
        flags["cxx"].append("-fopenmp")
        link += ["-fopenmp", "-Wl,-s"]
    if with_cuda:
        macros.append(("MMPLUS_WITH_CUDA", None))
        flags["nvcc"] = ["-O3", "--expt-relaxed-constexpr"]
    extension = (CUDAExtension if with_cuda else CppExtension)(
        "mmplus_ops._C",
        extension_sources(with_cuda),
        include_dirs=[str(ROOT / CSRC)],
        define_macros=macros,
        extra_compile_args=flags,
        extra_link_args=link,
        py_limited_api=True,
    )

    class BuildOps(BuildExtension):
        """Build the ops, or go on without them: their plain PyTorch twins do the same work."""

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:
                self._give_up(error)

        def get_export_symbols(self, ext) -> list[str]:
            # The library registers itself when loaded; it is no Python module, so no PyInit.
            return []

        def copy_extensions_to_source(self) -> None:
            if self.extensions:
                super().copy_extensions_to_source()

        def _give_up(self, error: Exception) -> None:
            if mode == "must":
                raise error
            reason = str(error).strip().splitlines() or [type(error).__name__]
            say(
                f"built without the compiled ops, their plain PyTorch versions will be used: "
                f"{reason[0]} (MMPLUS_WITH_OPS=1 makes this an error)"
            )
            self.extensions = []

    return [extension], BuildOps


class InstallLib(install_lib):
    """Copy the zoo's resources beside the installed package, where ``mim`` looks for them.

    They are copied here and not by ``build_py``: a second copy under ``build/`` or in the source
    tree would make every config's bare name ambiguous to ``mim``.
    """

    def install(self):
        installed = super().install() or []
        return installed + [str(path) for path in self._copy_resources()]

    def get_outputs(self):
        home = Path(self.install_dir) / RESOURCE_HOME
        return super().get_outputs() + [str(home / relative) for _, relative in resource_files()]

    def _copy_resources(self) -> list[Path]:
        home = Path(self.install_dir) / RESOURCE_HOME
        copied = []
        for source, relative in resource_files():
            target = home / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
            copied.append(target)
        return copied


def resource_files() -> list[tuple[Path, Path]]:
    """Files of the zoo as (source, path relative to the resource folder)."""
    files = []
    for name in RESOURCES:
        top = ROOT / name
        candidates = [top] if top.is_file() else sorted(top.rglob("*"))
        for path in candidates:
            relative = path.relative_to(ROOT)
            if path.is_file() and not SKIPPED_NAMES.intersection(relative.parts):
                files.append((path, relative))
    return files


def packages() -> list[str]:
    """The three import packages; the ops live apart, under ``ops/``."""
    return find_packages(".", include=["mmdet_plus*", "mmseg_plus*"]) + find_packages(
        "ops", include=["mmplus_ops*"]
    )


if __name__ == "__main__":
    ext_modules, build_ext = compiled_extension()
    setup(
        packages=packages(),
        package_dir={"mmplus_ops": "ops/mmplus_ops"},
        ext_modules=ext_modules,
        cmdclass={"build_ext": build_ext, "install_lib": InstallLib},
        options={"bdist_wheel": {"py_limited_api": "cp310"}} if ext_modules else {},
        zip_safe=False,
    )
