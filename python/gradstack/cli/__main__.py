"""Lets ``python -m gradstack.cli`` stand in for the ``gradstack`` command."""

import sys

from gradstack.cli import main

sys.exit(main())
