"""`python -m mmjax` is the `mmjax` command."""

import sys

from mmjax import cli

if __name__ == "__main__":
    sys.exit(cli.main())
