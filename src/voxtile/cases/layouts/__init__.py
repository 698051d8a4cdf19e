"""How a data set lies on disk: which files make one case. Configurations name these classes as `voxtile.cases.layouts.<class>`."""

from voxtile.cases.layouts.folder import FolderLayout
from voxtile.cases.layouts.layout import SPLITS, CaseFiles, Layout
from voxtile.cases.layouts.listing import ListLayout, MsdLayout
from voxtile.cases.layouts.made import MadeScenes, MadeVolumes

__all__ = ["SPLITS", "CaseFiles", "FolderLayout", "Layout", "ListLayout", "MadeScenes", "MadeVolumes", "MsdLayout"]
