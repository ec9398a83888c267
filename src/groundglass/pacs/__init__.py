"""A DICOM archive answered: its CT series classified, the results stored beside them."""
