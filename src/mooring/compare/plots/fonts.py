"""A small copy of DejaVu Sans for the figures.

Matplotlib cuts a font down to the glyphs in use anew for every PDF, and DejaVu's 6 000 glyphs and layout tables make
that most of a report's time. From a copy with Latin, Greek and a few signs it takes a tenth. Signs that the copy lacks
come from DejaVu Sans itself, which stays behind it in the list of families.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import matplotlib as mpl
from fontTools import subset  # type: ignore[import-untyped]
from matplotlib import font_manager

FAMILY = "Mooring Sans"
_CHARACTERS = (range(0x20, 0x250), range(0x370, 0x400), range(0x2010, 0x2060), range(0x2070, 0x20A0))
_SIGNS = "←↑→↓−×±≈≤≥‖∞■▲▼◆●★✓✗"


@functools.cache
def families() -> list[str]:
    """The families to draw with, the small one first; it is made at the first call and removed at exit."""
    folder = Path(tempfile.mkdtemp(prefix="mooring-font-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    wanted = [*(code for codes in _CHARACTERS for code in codes), *map(ord, _SIGNS)]
    options = subset.Options(layout_features=[], hinting=False, name_IDs=["*"], notdef_outline=True)
    options.drop_tables += ["GSUB", "GPOS", "GDEF", "kern", "FFTM"]
    for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"):
        font = subset.load_font(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / name), options)
        subsetter = subset.Subsetter(options)
        subsetter.populate(unicodes=wanted)
        subsetter.subset(font)
        for record in font["name"].names:
            if record.nameID in (1, 16):
                record.string = FAMILY
        font.save(folder / name)
        font_manager.fontManager.addfont(folder / name)
    return [FAMILY, "DejaVu Sans"]
