"""Lungs and lesions of a volume in its own voxel grid: ``python masks_of_volume.py CT.nii.gz MASK.nii.gz``."""

import sys

import nibabel
import numpy as np

import groundglass

source, target = sys.argv[1:]
volume = nibabel.load(source)
predictions = groundglass.load().predict(volume)
mask = predictions.lung_mask.astype(np.uint8) + predictions.lesion_mask  # 1 lung, 2 lesion
nibabel.Nifti1Image(mask, volume.affine).to_filename(target)

answer = groundglass.load().predict_series(predictions)
print(f"{answer.label}: {answer.in_words}; {answer.opacity.in_words if answer.opacity else 'no lungs'}")
