#!/bin/sh
# A row of the paper's table (arXiv 2407.01014) for a run, with the published figures above it: PSNR, SSIM and, with the
# weights in $LPIPS, LPIPS over 250 test images; and the Frechet distance of the model's own samples.
#
#   sh examples/paper_table.sh TASK RUN TEST REFERENCE [--size 64 --crop 140]
#
# TASK is inpainting, denoising or deblurring; RUN the folder of `emfast train`; TEST clean images, which are corrupted as
# in training; REFERENCE clean images, or a .npz file with the statistics of their features (`emfast evaluate
# --statistics`). The column is FID, comparable with the published one, with the weights of Inception in $INCEPTION; else
# it is that of another feature space, and named so. $IMAGES and $SAMPLES are 250 and 50000 unless set, and $TABLE is
# markdown unless latex.
set -eu
task=$1 run=$2 test=$3 reference=$4
shift 4
images=${IMAGES:-250}
emfast restore "$run" --images "$test" --limit "$images" --output "$run/test" "$@"
emfast sample "$run" --count "${SAMPLES:-50000}" --steps "${STEPS:-100}" --output "$run/samples.npz"
[ -z "${LPIPS:-}" ] || set -- "$@" --lpips "$LPIPS"
[ -z "${INCEPTION:-}" ] || set -- "$@" --features inception --weights "$INCEPTION"
emfast evaluate "$run/test" "$test" --limit "$images" --samples "$run/samples.npz" --reference "$reference" \
    --name "emfast, $(basename "$run")" --beside "$(dirname "$0")/paper/$task.csv" --table "${TABLE:-markdown}" "$@"
