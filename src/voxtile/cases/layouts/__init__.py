"""How a data set lies on disk: which files make one case. Configurations name these classes as `voxtile.cases.layouts.<class>`."""

from voxtile.cases.layouts.bids import BidsLayout
from voxtile.cases.layouts.folder import FolderLayout
from voxtile.cases.layouts.layout import SPLITS, CaseFiles, Layout
from voxtile.cases.layouts.listing import ListLayout, MsdLayout
from voxtile.cases.layouts.made import MadeScenes, MadeVolumes
from voxtile.cases.layouts.nnunet import NnUnetLayout

__all__ = [
    "SPLITS",
    "BidsLayout",
    "CaseFiles",
    "FolderLayout",
    "Layout",
    "ListLayout",
    "MadeScenes",
    "MadeVolumes",
    "MsdLayout",
    "NnUnetLayout",
]
