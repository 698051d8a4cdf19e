"""The command `voxtile` where it is not on the path: `python -m voxtile train model=unet data=satellite`."""

from voxtile.commands.main import main

if __name__ == "__main__":
    raise SystemExit(main())
