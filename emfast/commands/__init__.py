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
}
