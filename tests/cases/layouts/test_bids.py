import pytest

from voxtile.cases.layouts import BidsLayout
from voxtile.errors import ConfigError, DataError


def put(root, *names):
    """Empty files; layouts look at names only."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "ds"
    for session in ("sub-2/ses-1", "sub-10/ses-1", "sub-2/ses-2"):
        name = session.replace("/", "_")
        put(folder, *(f"{session}/anat/{name}_{suffix}.nii.gz" for suffix in ("T1w", "FLAIR")), f"{session}/anat/{name}_T1w.json")
        put(folder, f"{session}/func/{name}_task-rest_bold.nii.gz")
        put(folder, f"derivatives/lesions/{session}/anat/{name}_space-T1w_label-lesion_mask.nii.gz")
        put(folder, f"derivatives/lesions/{session}/anat/{name}_label-ventricle_mask.nii.gz")
    put(folder, "participants.tsv", "sub-11/ses-1/func/sub-11_ses-1_task-rest_bold.nii.gz")
    return folder


def layout(root, suffixes=("T1w", "FLAIR"), derivative="derivatives/lesions", mask="label-lesion_mask", **settings):
    return BidsLayout(str(root), suffixes, derivative, mask, **settings)


def names(root, paths):
    return [path.relative_to(root).as_posix() for path in paths]


def test_a_session_is_a_case_and_its_subject_the_group(root):
    cases = layout(root).find()
    assert [case.id for case in cases] == ["sub-2_ses-1", "sub-2_ses-2", "sub-10_ses-1"]
    assert [case.group for case in cases] == ["sub-2", "sub-2", "sub-10"]
    assert cases[1].fields == {"subject": "2", "session": "2"}
    assert cases[0].channels == ("T1w", "FLAIR")
    folder = "sub-2/ses-1/anat/sub-2_ses-1"
    assert names(root, cases[0].images) == [f"{folder}_T1w.nii.gz", f"{folder}_FLAIR.nii.gz"]
    assert names(root, cases[0].labels) == [f"derivatives/lesions/{folder}_space-T1w_label-lesion_mask.nii.gz"]


def test_without_sessions_a_subject_is_a_case(tmp_path):
    put(tmp_path, "sub-01/anat/sub-01_T1w.nii", "derivatives/seg/sub-01/anat/sub-01_dseg.nii.gz")
    (case,) = BidsLayout(str(tmp_path), "T1w", "derivatives/seg").find()
    assert (case.id, case.group, case.fields) == ("sub-01", "sub-01", {"subject": "01", "session": ""})


def test_of_several_images_more_of_the_name_says_which(root):
    put(root, "sub-2/ses-1/anat/sub-2_ses-1_acq-fast_run-2_T1w.nii.gz")
    with pytest.raises(DataError, match=r"sub-2_ses-1 has several files .*acq-fast_run-2_T1w.*'suffixes: \[run-1_T1w\]'"):
        layout(root).find()
    for session in ("sub-2/ses-2", "sub-10/ses-1"):
        put(root, f"{session}/anat/{session.replace('/', '_')}_acq-fast_run-1_T1w.nii.gz")
    cases = layout(root, suffixes=["acq-fast_T1w", "FLAIR"]).find()
    assert cases[0].images[0].name == "sub-2_ses-1_acq-fast_run-2_T1w.nii.gz"


def test_of_several_masks_too(root):
    with pytest.raises(DataError, match=r"sub-2_ses-1 has several files .*label-ventricle_mask.*'mask: label-lesion_mask'"):
        layout(root, mask="mask").find()


def test_what_is_missing_is_named_or_left_out(root):
    (root / "sub-10/ses-1/anat/sub-10_ses-1_FLAIR.nii.gz").unlink()
    (root / "derivatives/lesions/sub-2/ses-2/anat/sub-2_ses-2_space-T1w_label-lesion_mask.nii.gz").unlink()
    with pytest.raises(
        DataError, match=r"2 sessions .* lack a file: sub-10_ses-1 \(FLAIR\), sub-2_ses-2 \(the mask.*incomplete=true"
    ):
        layout(root).find()
    assert [case.id for case in layout(root, incomplete=True).find()] == ["sub-2_ses-1"]


def test_nothing_to_find_is_said(root):
    with pytest.raises(DataError, match=r"holds no case: no file is called 'sub-…/anat/sub-…_T2w\.nii\.gz'"):
        layout(root, suffixes="T2w").find()
    with pytest.raises(ConfigError, match=r"'data\.layout\.suffixes' is empty"):
        layout(root, suffixes=[])
    with pytest.raises(ConfigError, match=r"'data\.layout\.incomplete=maybe' must be true or false"):
        layout(root, incomplete="maybe")


def test_new_files_are_gathered_into_cases_wherever_they_lie(root, tmp_path):
    put(tmp_path, "new/sub-9_T1w.nii.gz", "new/sub-9_FLAIR.nii.gz", "new/._sub-9_T1w.nii.gz", "new/derivatives/x/sub-8_T1w.nii.gz")
    found = layout("gone")
    for within in (root, root / "sub-2", root / "sub-2/ses-1/anat"):
        cases = found.images_below(root, within)
        assert len(cases) == (3 if within == root else 2 if within == root / "sub-2" else 1)
        assert {case.labels for case in cases} == {()}
        assert cases[0].id == "sub-2_ses-1"
    (case,) = found.images_below(tmp_path, tmp_path / "new")
    assert names(tmp_path, case.images) == ["new/sub-9_T1w.nii.gz", "new/sub-9_FLAIR.nii.gz"]
    (one,) = found.images_below(tmp_path, tmp_path / "new/sub-9_FLAIR.nii.gz")
    assert one == case
