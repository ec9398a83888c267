"""Classify everything in a folder and write a table: python predict_folder.py FOLDER TABLE.csv (needs pandas)."""

import sys

import pandas as pd

import groundglass

folder, table = sys.argv[1:]
predictions = groundglass.load().predict(folder, evidence=False)
pd.DataFrame(predictions.to_dict()).to_csv(table, index=False)
for prediction in predictions:
    print(prediction.file, prediction.status.value, prediction.label or prediction.reason)
