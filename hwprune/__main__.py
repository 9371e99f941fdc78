"""The command line as ``python -m hwprune``, for launchers such as ``torchrun`` that start modules."""

from hwprune.cli import main

if __name__ == "__main__":
    main(prog_name="hwprune")
