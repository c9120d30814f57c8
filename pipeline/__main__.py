"""The `jointseg` command's way in: settings that Ray reads when it is imported, then the command line.

Not here: the commands (cli.py).
"""

from __future__ import annotations

import os
import sys

ENVIRONMENT = {
    # Half the start-up of a worker group, measured: poll the new workers ten times a second, without metrics agents.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    # Quiet: no usage question, no advice about deprecated names, no retained copies of Tune's own logs.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Of a node that is lost Ray says that it is dead; it would also show the last twenty lines of its log, twice.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^Raylet is terminated",
    # An interrupted search is interrupted: Tune would end it early and call that its result.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # of a server: four lines a trial
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # of each file that comes from a server
}


def main() -> None:
    """Run the command line; a plain message where the `pipeline` extra is not installed, none where it is interrupted early."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from pipeline.cli import run_command_line
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in {"jointseg", "pipeline", "tune_spaces"}:
            raise
        how = "pip install '.[pipeline]' in a clone of the repository"
        sys.stderr.write(f"error: the command line needs {error.name!r}; install it with: {how}\n")
        sys.exit(2)
    except KeyboardInterrupt:  # the imports take seconds
        sys.exit(130)
    sys.exit(run_command_line())


if __name__ == "__main__":
    main()
