"""Train the demo VLA by behaviour cloning: ``python -m demo.train.train --help``.

The DINOv2-S-architecture tower is frozen and its features are cached; the SigLIP-like tower, the
projector, the state projector and the L1 head are trained from scratch, the language model from
scratch or (``--language smollm2``) from a pretrained one; on a GPU if there is one. The state is
kept every few steps in ``--work``: after ``kill -9`` the same command goes on. The model folder is
written at the end only.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from demo.assemble import CACHE, SOURCE
from demo.pretrained import BACKBONE, LANGUAGE, read_backbone, read_language_model
from demo.train.dataset import TaskSamples, load_task, read_samples, write_samples
from demo.train.layout import (
    DINO,
    LANGUAGES,
    MEANS,
    SIGLIP_LIKE,
    STDS,
    dataset_statistics,
    train_tokenizer,
    write_small_files,
)
from demo.train.trainer import FROZEN, Trainer, TrainingSettings
from qvla_ros.atomic_file import atomic_file
from qvla_ros.errors import ConfigurationError
from qvla_ros.models.folder_settings import processing_settings
from qvla_ros.models.openvla_oft import OpenVlaOft, OpenVlaOftConfig
from qvla_ros.models.processing import Processing
from qvla_ros.models.released_folder import open_small_files
from qvla_ros.models.released_layout import read_llama
from qvla_ros.models.robot_constants import ROBOT_CONSTANTS
from qvla_ros.models.vision_transformer import VisionTransformer

ROBOT = ROBOT_CONSTANTS["libero"]
TOWERS = "vision_backbone."
WEIGHTS, TOKENIZER, RECORD = "trained.safetensors", "tokenizer.json", "training.json"


def frozen_backbone() -> VisionTransformer:
    """The pretrained tower without its last block."""
    backbone = VisionTransformer(DINO).eval().requires_grad_(False)
    tensors = read_backbone(BACKBONE.fetch(CACHE), DINO.image_size // DINO.patch_size)
    live = {name: tensors[name] for name in backbone.state_dict()}
    live["patch_embed.proj.weight"] = live["patch_embed.proj.weight"].flatten(1)
    backbone.load_state_dict(live)
    return backbone


def train(options: argparse.Namespace) -> None:
    """Load demonstrations, train, and write the trained half of the model.

    Args:
        options: Of ``training_options``.
    """
    device = torch.device(options.device)
    before: Path | None = options.begin_with
    runs_before = json.loads((before / RECORD).read_bytes())["runs"] if before else []
    for folder in (options.work, options.samples):
        folder.mkdir(parents=True, exist_ok=True)
    tasks = _load(options, device)
    torch.manual_seed(options.seed)  # after the samples, whether they were prepared now or before
    network, processing = _network(tasks, options.work, options.language, device)
    pretrained = _pretrained(network, options.language)
    if before is not None:
        same = runs_before[-1].get("language", "small") == options.language
        _go_on_from(before / "model", network, options.work, "" if same else TOWERS)
    for layer in network.llama.layers:
        layer.compile(dynamic=False)  # fuses the small operations of a step
    settings = TrainingSettings(
        steps=options.steps,
        batch=options.batch,
        learning_rate=options.learning_rate,
        aim_weight=options.aim_weight,
        seed=options.seed,
        pretrained_share=options.pretrained_share,
    )
    purpose: dict[str, object] = {
        "data_sha256": {one.name: digest(one, options.demonstrations) for one in options.data},
        "demonstrations": options.demonstrations,
        "variants": options.variants,
        "language": options.language,
        "begin_with": before and _sha256(before / "model" / WEIGHTS),
    }
    state = options.work / "state.safetensors"
    trainer = Trainer(network, processing, tasks, settings, purpose, state, pretrained)
    weights = trainer.run(options.keep_every)
    _write_model(weights, options.work, options.out)
    record = {
        "tasks": {
            t.instruction: {"demonstrations": t.demonstrations, "samples": len(t.states)}
            for t in tasks
        },
        **trainer.state.purpose,
        "device": device.type,
        "seconds": round(trainer.state.seconds),
        "curve": {"columns": ["step", "l1", "aim"], "rows": trainer.state.curve},
    }
    runs = [*runs_before, record]
    with atomic_file(options.out.parent / RECORD) as file:
        file.write(f"{json.dumps({'runs': runs})}\n".encode())


def training_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The words of the command line; ends the program if they are wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, help="a folder for each task"
    )
    parser.add_argument("--demonstrations", type=int, default=200, help="at most, for each task")
    parser.add_argument("--variants", type=int, default=2, help="crops of each image (2)")
    parser.add_argument("--language", choices=LANGUAGES, default="small")
    parser.add_argument("--out", type=Path, default=SOURCE)
    parser.add_argument("--work", type=Path, default=Path("demo_output/training"))
    parser.add_argument(
        "--samples",
        type=Path,
        default=Path("demo_output/samples"),
        help="prepared once, kept here",
    )
    parser.add_argument("--keep-every", type=int, default=100, metavar="STEPS")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=48, help="divided evenly over the tasks")
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument(
        "--pretrained-share",
        type=float,
        default=1.0,
        help="of the rate, for pretrained layers (1)",
    )
    parser.add_argument("--aim-weight", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--begin-with",
        type=Path,
        metavar="FOLDER",
        help="go on from its model/ and training.json; only the towers, of another language model",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    before: Path | None = options.begin_with
    if before is not None:
        wanted = (before / RECORD, before / "model" / WEIGHTS, before / "model" / TOKENIZER)
        if missing := [path for path in wanted if not path.exists()]:
            parser.error(f"--begin-with: {missing[0]} is missing")
        if before.resolve() == options.out.resolve().parent:
            parser.error(f"--begin-with: {before} is going to be overwritten; begin with a copy")
    return options


def _load(options: argparse.Namespace, device: torch.device) -> list[TaskSamples]:
    """The samples of each task; what was prepared once is kept in ``--samples``."""
    backbone: VisionTransformer | None = None
    norm = torch.tensor([MEANS[0], STDS[0]])
    tasks = []
    for folder in options.data:
        made_of = f"{digest(folder, options.demonstrations)} {BACKBONE.sha256} {options.variants}"
        key = hashlib.sha256(made_of.encode()).hexdigest()[:16]
        path = options.samples / f"{folder.name}-{key}.safetensors"
        if not path.exists():
            if backbone is None:
                backbone = frozen_backbone().to(device)
            limit, variants = options.demonstrations, options.variants
            write_samples(path, load_task(folder, limit, ROBOT, backbone, norm, variants))
        tasks.append(read_samples(path))
    return tasks


def _network(
    tasks: list[TaskSamples], folder: Path, language: str, device: torch.device
) -> tuple[OpenVlaOft, Processing]:
    """The network before training; its small files are written to ``folder``."""
    states = torch.cat([task.states for task in tasks]).numpy()
    actions = torch.cat([task.chunks[:, 0] for task in tasks]).numpy()
    episodes = sum(task.demonstrations for task in tasks)
    tokenizer = train_tokenizer([task.instruction for task in tasks])
    statistics = dataset_statistics(states, actions, episodes)
    config = write_small_files(folder, tokenizer, statistics, language)
    small = open_small_files(folder)
    processing = Processing(processing_settings(small, None, ROBOT), small.tokenizer_json)
    shape = OpenVlaOftConfig(
        (DINO, SIGLIP_LIKE),
        read_llama(config),
        len(ROBOT.image_names),
        ROBOT.horizon,
        ROBOT.action_dim,
        ROBOT.state_dim,
    )
    network = OpenVlaOft(shape)
    torch.nn.init.trunc_normal_(network.vision_backbone.fused_featurizer.pos_embed, std=0.02)
    return network.to(device), processing


def _pretrained(network: OpenVlaOft, language: str) -> set[str]:
    """Fill in what there is pretrained of the language model; the names of these parameters."""
    if language != "smollm2":
        return set()
    llama = network.llama.config
    shape = llama.num_hidden_layers, llama.num_attention_heads, llama.num_key_value_heads
    tensors = read_language_model(LANGUAGE.fetch(CACHE), *shape)
    rest = network.load_state_dict(tensors, strict=False)
    strange = [name for name in rest.missing_keys if ".layers." in name] + rest.unexpected_keys
    if strange:
        raise ConfigurationError(f"{LANGUAGE.member} does not fit: {', '.join(strange[:5])}")
    return set(tensors)


def _go_on_from(model: Path, network: OpenVlaOft, small: Path, part: str = "") -> None:
    """Begin with the weights of another training; embeddings only if the tokens are the same.

    Args:
        model: Folder of the other training's weights.
        network: Whose weights are set.
        small: Folder with this training's tokenizer.
        part: How the names of what is taken begin; the rest stays as it is.

    Raises:
        ConfigurationError: They are weights of another network.
    """
    weights, parameters = load_file(model / WEIGHTS), network.state_dict()
    before = {name: one.float() for name, one in weights.items() if name.startswith(part)}
    own = {n: t.shape for n, t in parameters.items() if n.startswith(part)}
    own = {name: shape for name, shape in own.items() if not name.startswith(FROZEN)}
    strange = own.keys() ^ before.keys()
    if (model / TOKENIZER).read_bytes() != (small / TOKENIZER).read_bytes():
        before.pop("language_model.model.embed_tokens.weight", None)
    strange |= {name for name, tensor in before.items() if tensor.shape != own.get(name)}
    if strange:
        raise ConfigurationError(f"{model} is another network: {', '.join(sorted(strange)[:5])}")
    network.load_state_dict(before, strict=False)


def _write_model(weights: dict[str, Tensor], small: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    half = {name: t.to(torch.bfloat16).cpu().contiguous() for name, t in weights.items()}
    for part in small.glob("*.json"):
        with atomic_file(out / part.name) as copy:
            copy.write(part.read_bytes())
    with atomic_file(out / WEIGHTS) as file:
        file.write(save(half))


def digest(folder: Path, limit: int) -> str:
    """SHA-256 over a task's demonstrations, as many as are used."""
    result = hashlib.sha256()
    for file in sorted(folder.glob("*.npz"))[:limit]:
        result.update(file.read_bytes())
    return result.hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    train(training_options())
