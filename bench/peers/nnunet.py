"""Dice of nnU-Net on one fold of a run of voxtile, after as many minutes of training.

python bench/peers/nnunet.py <MSD folder> <run folder> <2d|3d_fullres> <minutes> <batch> <folder for its files>

In an environment of its own with `pip install nnunetv2==2.8.1`. The run's manifest says which cases train and which are scored;
all else is nnU-Net's own (plan, preprocessing, augmentation, network, loss, optimizer, inference with mirroring, score) but for
two things, since it is made for 250,000 steps on a GPU: the polynomial rate falls to 0 over the minutes instead of over 1000
epochs, and a batch may be smaller (0: as planned). Preprocessing and the last validation are not counted.
"""

import json
import os
import sys
import time
from pathlib import Path

NAME = "Dataset504_Peer"


def raw(source: Path, folder: Path) -> None:
    """The cases as links in nnU-Net's form."""
    described = json.loads((source / "dataset.json").read_text())
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for file in (source / part).glob("[!.]*.nii.gz"):
            name = file.name.replace(".nii.gz", "_0000.nii.gz") if part == "imagesTr" else file.name
            if not (folder / part / name).exists():
                (folder / part / name).symlink_to(file.resolve())
    labels = {name: int(value) for value, name in described["labels"].items()}
    channels = described["modality"]
    cases = len(list((folder / "labelsTr").iterdir()))
    text = {"channel_names": channels, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(text))


def main(source: str, run: str, configuration: str, minutes: float, batch: int, work: Path) -> None:
    os.environ |= {f"nnUNet_{part}": str(work / part) for part in ("raw", "preprocessed", "results")}
    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    class Timed(nnUNetTrainer):
        """nnU-Net's training with a clock instead of a count of epochs."""

        def run_training(self) -> None:
            self.on_train_start()
            self.on_epoch_start()
            self.on_train_epoch_start()
            began, steps = time.perf_counter(), 0
            while (share := (time.perf_counter() - began) / (60 * minutes)) < 1:
                for group in self.optimizer.param_groups:
                    group["lr"] = self.initial_lr * (1 - share) ** 0.9
                loss = self.train_step(next(self.dataloader_train))["loss"]
                steps += 1
                if steps % 20 == 0:
                    print(f"step {steps}  {time.perf_counter() - began:.0f} s  loss {loss:.3f}", flush=True)
            print(f"{steps} steps of {self.configuration_manager.batch_size} samples", flush=True)
            self.save_checkpoint(str(Path(self.output_folder, "checkpoint_final.pth")))

    ready = work / "preprocessed" / NAME
    if not (ready / "nnUNetPlans.json").exists():
        raw(Path(source), work / "raw" / NAME)
        extract_fingerprints([504], num_processes=2)
        plan_experiments([504])
    plans = json.loads((ready / "nnUNetPlans.json").read_text())
    if not (ready / plans["configurations"][configuration]["data_identifier"]).exists():
        preprocess([504], configurations=[configuration], num_processes=[2])
    split = json.loads((Path(run) / "manifest.json").read_text())["data"]["split"]
    (ready / "splits_final.json").write_text(
        json.dumps([{part: [case["id"] for case in split[part]] for part in ("train", "val")}])
    )
    plans["continue_training"] = False
    if batch:
        plans["configurations"][configuration]["batch_size"] = batch
    dataset = json.loads((ready / "dataset.json").read_text())
    trainer = Timed(plans, configuration, 0, dataset, device=torch.device("cpu"))
    trainer.run_training()
    trainer.perform_actual_validation()
    summary = json.loads(Path(trainer.output_folder, "validation", "summary.json").read_text())
    print({name: round(summary["mean"][str(value)]["Dice"], 4) for name, value in dataset["labels"].items() if value})


if __name__ == "__main__":
    main(*sys.argv[1:4], float(sys.argv[4]), int(sys.argv[5]), Path(sys.argv[6]))
