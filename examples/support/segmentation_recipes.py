"""How to train: the original recipes, and one for small generated images, as defaults of the command's flags.

The original ones are those of the authors' segmentation code on ADE20K, which had batches of 2 on 8 GPUs. The
schedules are Transformers'; mmcv's multiplies warm-up and decay, which differs by less than 1 % of the learning rate.
"""

import json


ADE20K_IMAGES = {
    "shortest_edge": 512,
    "longest_edge": 2048,
    "min_ratio": 0.5,
    "max_ratio": 2.0,
    "crop_size": 512,
    "max_class_share": 0.75,
    "photometric_distortion": True,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 1,
    "dataloader_num_workers": 4,
    "lr_scheduler_type": "polynomial",
    "max_grad_norm": 0.0,  # Gradients are not clipped.
    "save_steps": 8000,
    "eval_steps": 8000,
    "logging_steps": 50,
}

RECIPES = {
    "fpn": {
        **ADE20K_IMAGES,
        "head": "fpn",
        "max_steps": 80_000,
        "learning_rate": 1e-4,
        "weight_decay": 1e-4,
        "decay_norms": True,
        "warmup_steps": 0,
        "lr_scheduler_kwargs": json.dumps({"power": 0.9, "lr_end": 0.0}),
    },
    "upernet": {
        **ADE20K_IMAGES,
        "head": "upernet",
        "max_steps": 160_000,
        "learning_rate": 6e-5,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "weight_decay": 0.01,
        "decay_norms": False,
        "warmup_steps": 1500,
        "lr_scheduler_kwargs": json.dumps({"power": 1.0, "lr_end": 0.0}),
    },
    "shapes": {
        "head": "fpn",
        "architecture": "crossformer-64px",
        "config_overrides": json.dumps(
            {
                "patch_sizes": [2, 4, 8, 16],
                "embed_dim": 32,
                "num_heads": [1, 2, 4],
                "depths": [1, 1, 2],
                "drop_path_rate": 0.0,
                "fpn_hidden_size": 64,
                "decoder_hidden_size": 64,
                "classifier_dropout_prob": 0.0,
            }
        ),
        "shortest_edge": 96,
        "longest_edge": 384,
        "min_ratio": 1.0,
        "max_ratio": 1.0,
        "crop_size": 96,
        "max_class_share": 1.0,
        "photometric_distortion": False,
        "max_steps": 300,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 16,
        "learning_rate": 2e-3,
        "weight_decay": 0.01,
        "decay_norms": False,
        "warmup_steps": 30,
        "lr_scheduler_type": "polynomial",
        "lr_scheduler_kwargs": json.dumps({"power": 0.9, "lr_end": 0.0}),
        "save_steps": 100,
        "eval_steps": 100,
        "logging_steps": 5,
    },
}
