"""Set loss of DETR (paper, section 3.1): Hungarian matching, then classification, box and mask losses."""
