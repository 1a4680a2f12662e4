"""What mends an import that failed."""

import re

BOTH = "pip install --upgrade --force-reinstall torch torchvision"
"""torch and torchvision of one kind and of versions that match."""

_HEADLESS = "pip uninstall -y opencv-python && pip install --force-reinstall opencv-python-headless"
_SCREEN = r"lib(GL|gthread|X\w+|SM|ICE)\b.*\.so"
_DISTRIBUTIONS = {"OpenSSL": "pyopenssl", "PIL": "pillow", "cv2": "opencv-python-headless"}
_SYMPTOMS = {
    r"torchvision::|CUDA major versions": BOTH,
    r"lib(cu\w+|nv\w+|nccl|torch\w*)\.so": BOTH,
    r"_ARRAY_API|numpy\.core\.multiarray|NumPy 1\.x": "pip install --upgrade numpy",
    r"^ValueError: invalid literal for int": "unset HF_HUB_ETAG_TIMEOUT HF_HUB_DOWNLOAD_TIMEOUT",
}


def remedy(error: str, name: str) -> str:
    """What mends an import that failed like this."""
    if name.startswith(("opencv", "onedl")) and re.search(_SCREEN, error):
        return _HEADLESS
    for symptom, fix in _SYMPTOMS.items():
        if re.search(symptom, error):
            return fix
    if error.startswith("not tried"):
        return "mend that first"
    if missing := re.match(r"ModuleNotFoundError: No module named '(\w+)", error):
        return f"pip install {_DISTRIBUTIONS.get(missing[1], missing[1].replace('_', '-'))}"
    if "SIGILL" in error:
        return f"install a build of {name} for this processor"
    return f"pip install --force-reinstall {name}"
