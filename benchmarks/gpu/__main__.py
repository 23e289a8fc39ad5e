"""python -m enet_deploy.benchmarks.gpu"""

from .cli import main

raise SystemExit(main())
