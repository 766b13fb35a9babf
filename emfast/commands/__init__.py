"""The subcommands of `emfast`, one file each: `Options` (its arguments and their documentation) and `run`."""

COMMANDS = {
    "import": "read a folder of observations of your own into one file",
    "train": "train a clean diffusion model from corrupted observations",
    "work": "join the E-steps of a run that goes on elsewhere",
    "restore": "reconstruct new observations with a trained model",
    "sample": "draw images from a trained model",
    "evaluate": "compare two sets of images: PSNR, SSIM, Frechet distance",
    "report": "draw the pictures and tables of a run again",
    "precompile": "compile a model's GPU kernels on a machine without a GPU",
    "info": "versions, devices, and the backend of every op",
    "completion": "let a shell complete commands and options",
}
EXAMPLES = {
    "import": ["emfast import raw --masks masks --output obs.h5"],
    "train": [
        "emfast train --config examples/demo.yaml",
        "emfast train --data.observations obs.h5 --sigma 20 --preset tiny",
    ],
    "work": ["emfast work runs/mine --device cuda:1"],
    "restore": ["emfast restore runs/mine --observations obs.h5 --samples 4"],
    "sample": ["emfast sample runs/mine --count 16 --output samples.npz"],
    "evaluate": ["emfast evaluate restored truth --table markdown"],
    "report": ["emfast report runs/mine runs/other"],
    "precompile": ["emfast precompile --model runs/mine --arch sm_80,sm_90"],
    "info": ["emfast info --model runs/mine --check"],
    "completion": [
        'eval "$(emfast completion bash)"    # in ~/.bashrc',
        'eval "$(emfast completion zsh)"     # in ~/.zshrc',
    ],
}
