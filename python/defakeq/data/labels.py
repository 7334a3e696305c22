"""The labels and names of the public benchmarks, and the people that file names tell of.

The label names are those of DeepfakeBench's data files, so that they can be read as they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

REAL, FAKE = 0, 1

# Label name -> class.
LABELS: dict[str, int] = {
    "FF-real": REAL,
    "FF-DF": FAKE,
    "FF-F2F": FAKE,
    "FF-FS": FAKE,
    "FF-NT": FAKE,
    "FF-FH": FAKE,
    "FaceShifter": FAKE,
    "DFD_real": REAL,
    "DFD_fake": FAKE,
    "DFDC_Real": REAL,
    "DFDC_Fake": FAKE,
    "DFDCP_Real": REAL,
    "DFDCP_FakeA": FAKE,
    "DFDCP_FakeB": FAKE,
    "CelebDFv1_real": REAL,
    "CelebDFv1_fake": FAKE,
    "CelebDFv2_real": REAL,
    "CelebDFv2_fake": FAKE,
    "UADFV_Real": REAL,
    "UADFV_Fake": FAKE,
    "DF_real": REAL,
    "DF_fake": FAKE,
    "real": REAL,
    "fake": FAKE,
}

SPLITS = ("train", "val", "test")
COMPRESSIONS = ("raw", "c23", "c40")

_FF = re.compile(r"^(\d{3})(?:_(\d{3}))?$")
_DFD = re.compile(r"^(\d{2})(?:_(\d{2}))?__")
_CELEB = re.compile(r"^(id\d+)(?:_(id\d+))?_\d+$")
_CELEB_YOUTUBE = re.compile(r"^(\d{5})$")
_DFDCP = re.compile(r"^(\d+)_(?:(\d+)_)?[A-Za-z]")


@dataclass(frozen=True)
class Benchmark:
    """A public data set: its labels, whether its videos come at several compressions, its names.

    ``within`` is the folder of the data set whose videos it shares. ``identity`` finds the people
    in the name of a video, where the names tell.
    """

    name: str
    labels: tuple[str, ...]
    compressed: bool = False
    within: str = ""
    identity: tuple[re.Pattern[str], ...] = ()

    def people(self, video: str, label: str) -> tuple[str, ...]:
        """Return the identities in a video, or nothing where its name does not tell."""
        if self.identity == (_FF,) and label.startswith("DFD"):
            return _people((_DFD,), video)
        return _people(self.identity, video)


def _people(patterns: tuple[re.Pattern[str], ...], video: str) -> tuple[str, ...]:
    for pattern in patterns:
        match = pattern.match(video)
        if match:
            return tuple(sorted({group for group in match.groups() if group}))
    return ()


_FF_LABELS = ("FF-real", "FF-DF", "FF-F2F", "FF-FS", "FF-NT")
_FF_FOLDER = "FaceForensics++"

BENCHMARKS: dict[str, Benchmark] = {
    row.name: row
    for row in (
        Benchmark(_FF_FOLDER, _FF_LABELS, True, _FF_FOLDER, (_FF,)),
        *(
            Benchmark(label, ("FF-real", label), True, _FF_FOLDER, (_FF,))
            for label in _FF_LABELS[1:]
        ),
        Benchmark("FaceShifter", ("FF-real", "FF-FH"), True, _FF_FOLDER, (_FF,)),
        Benchmark("DeepFakeDetection", ("DFD_real", "DFD_fake"), True, _FF_FOLDER, (_DFD,)),
        Benchmark("DFDC", ("DFDC_Real", "DFDC_Fake"), within="DFDC"),
        Benchmark(
            "DFDCP",
            ("DFDCP_Real", "DFDCP_FakeA", "DFDCP_FakeB"),
            within="DFDCP",
            identity=(_DFDCP,),
        ),
        Benchmark(
            "Celeb-DF-v1",
            ("CelebDFv1_real", "CelebDFv1_fake"),
            within="Celeb-DF-v1",
            identity=(_CELEB, _CELEB_YOUTUBE),
        ),
        Benchmark(
            "Celeb-DF-v2",
            ("CelebDFv2_real", "CelebDFv2_fake"),
            within="Celeb-DF-v2",
            identity=(_CELEB, _CELEB_YOUTUBE),
        ),
    )
}

# Where FaceForensics++ and DeepFakeDetection keep the videos of a label.
FF_FOLDERS = {
    "FF-real": "original_sequences/youtube",
    "FF-DF": "manipulated_sequences/Deepfakes",
    "FF-F2F": "manipulated_sequences/Face2Face",
    "FF-FS": "manipulated_sequences/FaceSwap",
    "FF-NT": "manipulated_sequences/NeuralTextures",
    "FF-FH": "manipulated_sequences/FaceShifter",
    "DFD_real": "original_sequences/actors",
    "DFD_fake": "manipulated_sequences/DeepFakeDetection",
}
