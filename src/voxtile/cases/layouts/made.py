"""The default data, made up on first use."""

from __future__ import annotations

from voxtile.cases.layouts.folder import FolderLayout
from voxtile.cases.layouts.layout import CaseFiles
from voxtile.cases.layouts.listing import MsdLayout


class MadeScenes(FolderLayout):
    """The default scenes, made on first use."""

    def __init__(self, root: str, count: int = 16) -> None:
        """Remembers where they are, or will be, and how many."""
        super().__init__(root, images="images/{id}.tif", labels="labels/{id}.tif")
        self.count = count

    def find(self) -> list[CaseFiles]:
        """Makes the files where they are missing and returns the cases."""
        from voxtile.cases.made_scenes import make_scenes

        make_scenes(self.root, self.count)
        return super().find()


class MadeVolumes(MsdLayout):
    """The default volumes, made on first use."""

    def __init__(self, root: str, count: int = 24) -> None:
        """Remembers where they are, or will be, and how many."""
        super().__init__(root)
        self.count = count

    def find(self) -> list[CaseFiles]:
        """Makes the files where they are missing and returns the cases."""
        from voxtile.cases.made_volumes import make_volumes

        make_volumes(self.root, self.count)
        return super().find()
