"""How to train: for each head the original 1x recipe and one for small generated images, as defaults of the flags.

The original is that of the authors' detection code on COCO, which had batches of 2 on 8 GPUs.
"""

import json


ONE_X = {
    "shortest_edge": 800,
    "longest_edge": 1333,
    "flip_probability": 0.5,
    "num_train_epochs": 12,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 1,
    "learning_rate": 1e-4,
    "weight_decay": 1e-4,
    "max_grad_norm": 0.0,  # gradients are not clipped
    "warmup_steps": 500,
    "lr_drops": [8 / 12, 11 / 12],
    "dataloader_num_workers": 4,
    "save_strategy": "epoch",
    "eval_strategy": "epoch",
    "logging_steps": 50,
}

SMALL_CROSSFORMER = {
    "embed_dim": 48,
    "num_heads": [2, 4, 8],
    "depths": [1, 1, 2],
    "drop_path_rate": 0.0,
}
SHAPES = {
    "architecture": "crossformer-64px",
    "shortest_edge": 96,
    "longest_edge": 384,
    "flip_probability": 0.5,
    "per_device_eval_batch_size": 8,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "warmup_steps": 30,
    "lr_scheduler_type": "polynomial",
    "lr_scheduler_kwargs": json.dumps({"power": 0.9, "lr_end": 0.0}),
    "save_strategy": "steps",
    "eval_strategy": "steps",
    "logging_steps": 5,
}

RECIPES = {
    "retinanet": {**ONE_X, "head": "retinanet"},
    "mask_rcnn": {**ONE_X, "head": "mask_rcnn"},
    # It has no regions to compute: its steps are cheap, but more are needed, and finer maps for smaller anchors.
    "shapes_retinanet": {
        **SHAPES,
        "head": "retinanet",
        "config_overrides": json.dumps(
            {**SMALL_CROSSFORMER, "patch_sizes": [4, 8, 16], "group_sizes": [6, 6, 6], "fpn_hidden_size": 128}
        ),
        "max_steps": 800,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "save_steps": 200,
        "eval_steps": 400,
    },
    "shapes_mask_rcnn": {
        **SHAPES,
        "head": "mask_rcnn",
        "config_overrides": json.dumps({**SMALL_CROSSFORMER, "patch_sizes": [6, 12, 24], "fpn_hidden_size": 48}),
        "max_steps": 400,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "save_steps": 100,
        "eval_steps": 200,
    },
}
