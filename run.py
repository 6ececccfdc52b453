"""`python run.py train --tasks summ,qa`: the same program as the installed `multitask` command."""

from multitask.cli.main import main

if __name__ == "__main__":
    main()
