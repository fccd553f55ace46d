"""Every environment variable that dslm reads or sets, each with a sentence.

Knows names, not values: whoever reads one passes the value on as an argument.
"""

from __future__ import annotations

DS_CONFIG = "DSLM_DS_CONFIG"
"""Path of the resolved DeepSpeed JSON, for scripts started by `dslm launch`."""
ANSWER_PIPE = "DSLM_ANSWER_PIPE"
"""File descriptor for the answer of a process that dslm asks for something."""
ACCELERATOR = "DS_ACCELERATOR"
"""DeepSpeed's own choice of accelerator; dslm sets `cpu` where there is none."""
DEEPSPEED_ENVIRONMENT_FILE = "DS_ENV_FILE"
"""Name of a file of variables that DeepSpeed's launcher pastes into a shell's command line on every
host; dslm names one that doesn't exist."""
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Network interface that the ranks meet over; dslm sets the one that routes to the master."""
VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
"""Which CUDA devices may be used."""
THREADS = "OMP_NUM_THREADS"
"""CPU threads per rank; set so that the ranks of a host don't fight over cores."""
COLUMNS = "COLUMNS"
"""Columns of the terminal; dslm ignores numbers that are too small."""
LINES = "LINES"
"""Lines of the terminal, in the same way."""
IO_ENCODING = "PYTHONIOENCODING"
"""Python's own: the encoding of dslm's output; characters that it lacks become ASCII."""
UTF8 = "PYTHONUTF8"
"""Python's own: print UTF-8 whatever the locale is."""
LOCALE = ("LC_ALL", "LC_CTYPE", "LANG")
"""The locale; under `C` and `POSIX` dslm prints ASCII."""
HUB_OFFLINE = "HF_HUB_OFFLINE"
"""huggingface_hub's own: look into its cache only; dslm sets it where the Hub doesn't answer."""
HUB_ENDPOINT = "HF_ENDPOINT"
"""huggingface_hub's own: another address of the Hub."""
SAFE_PATH = "PYTHONSAFEPATH"
"""Python's own: modules in the folder where a rank starts never replace libraries."""
WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""Lets torch load nothing but tensors and plain values; dslm sets it while it reads checkpoints."""
PATH = "PATH"
"""Folders of programs; ranks look into their Python's own first, whichever host they are on."""
EXTENSIONS = "TORCH_EXTENSIONS_DIR"
"""Where DeepSpeed's operators are built; dslm sets a folder for each Python environment."""
CACHE = "XDG_CACHE_HOME"
"""The user's cache folder, `~/.cache` unless it is set."""
WANDB = "WANDB_DIR"
"""Where the tracker wandb writes; the run directory unless it is set."""
TENSORBOARD = "TENSORBOARD_LOGGING_DIR"
"""Where the tracker tensorboard writes; the run's own `tensorboard/` unless it is set."""
MLFLOW = "MLFLOW_TRACKING_URI"
"""Where the tracker mlflow writes; the run's own `mlruns/` unless it is set."""
MLFLOW_FILES = "MLFLOW_ALLOW_FILE_STORE"
"""Lets mlflow write files, as it does into a run; dslm sets it with the folder."""
TRACKIO = "TRACKIO_DIR"
"""Where the tracker trackio writes; the run's own `trackio/` unless it is set."""
ACCELERATE_CPU = "ACCELERATE_USE_CPU"
"""Tells accelerate, and so a user's own Trainer, to use gloo; dslm sets it for scripts
on a CPU."""
HUB_HOME = "HF_HOME"
"""huggingface_hub's folder; a Hub model that was downloaded before is planned from it."""
HUB_CACHE = "HF_HUB_CACHE"
"""huggingface_hub's cache of models, where it is not below HF_HOME."""

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
"""Number of a rank, its number on its host, and the number of all ranks: set by torch's and
DeepSpeed's launchers; a site may name others in its attempt."""
FORWARDED = ("NCCL_", "GLOO_", "UCX_", "HF_", "TORCH_", "CUDA_", "OMP_")
"""Prefixes of the variables that dslm forwards to the ranks of several hosts."""
