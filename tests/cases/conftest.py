import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Decoded arrays of tests go to the test's own folder."""
    monkeypatch.setenv("VOXTILE_CACHE", str(tmp_path / "cache"))
