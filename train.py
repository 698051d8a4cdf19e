"""Trains a run: python train.py model=unet data=satellite (the same as `voxtile train …`)."""

from voxtile.commands.main import main

if __name__ == "__main__":
    raise SystemExit(main(["train"]))
