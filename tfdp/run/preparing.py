"""What precedes the first step of a run: build, find the resume point, check, restore."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfdp.checkpoints.saving import Saver
from tfdp.checkpoints.state import without_learning_rates
from tfdp.checkpoints.store import CheckpointStore
from tfdp.data import pipeline
from tfdp.data.pipeline import Batches
from tfdp.errors import BadInput, Replaced, Superseded
from tfdp.files import Claim
from tfdp.log import say_on_chief
from tfdp.publishing import publish_recipe
from tfdp.recipe import Recipe
from tfdp.run.recipe_data import RecipeData, data_of
from tfdp.run.recipe_model import build_model
from tfdp.run.resume_point import ResumePoint, find_resume_point
from tfdp.run.run import Run
from tfdp.run.settings import TrainSettings
from tfdp.step.building import build
from tfdp.step.gradients import GradientAllReduce
from tfdp.step.metrics import read_metrics
from tfdp.step.stage import EXAMPLES
from tfdp.trainer import callbacks, compiled, evaluation
from tfdp.whereabouts import marked
from tfdp.workers.collectives import Workers
from tfdp.workers.membership import Membership

DEFAULT_EPOCHS = 10


@marked("preparing the run")
def prepare(
    settings: TrainSettings, recipe: Recipe, workers: Workers, membership: Membership | None
) -> Run:
    """Prepares a run, so that training can start at its resume point; a collective.

    Raises:
        BadInput: on all workers, if something would fail later: the model, the data, the callbacks,
            publishing, or the checkpoint.
    """
    keras.utils.set_random_seed(settings.seed % (1 << 32))
    model = build_model(recipe, workers, settings.mixed_precision)
    data = data_of(recipe)
    claim = store = None
    if workers.is_chief:
        claim = Claim(settings.workdir, Replaced if membership is None else Superseded)
        folder = settings.workdir / "checkpoints"
        store = CheckpointStore(folder, settings.keep_checkpoints, claim)
    resume_point = _resume_point(settings, recipe, workers, store)
    batches = data.training_batches(workers, settings, resume_point.step)
    metric_names = _check_model_and_data(settings, recipe, workers, model, data, batches)
    if membership is not None:
        _say_what_depends_on_workers(model)
    run_callbacks = _callbacks(recipe, workers, metric_names)
    _check_publishing(settings, recipe, workers, model, data, metric_names)
    all_reduce = _all_reduce(resume_point, model, workers)
    checkpoint = resume_point.checkpoint
    if checkpoint is not None and resume_point.is_adopted:
        checkpoint = without_learning_rates(checkpoint)
    saver = Saver(
        model,
        workers,
        store,
        callbacks=run_callbacks,
        local_callbacks=callbacks.for_worker(run_callbacks, workers),
        step=resume_point.step,
        about=resume_point.about,
        checkpoint=checkpoint,
        keep_best=settings.keep_best,
    )
    saver.restore_model()
    last_step = _last_step(settings, resume_point, batches.steps_per_epoch)
    pause_step = _pause_step(settings, resume_point, last_step)
    return Run(
        settings=settings,
        recipe=recipe,
        workers=workers,
        membership=membership,
        model=model,
        data=data,
        batches=batches,
        callbacks=run_callbacks,
        all_reduce=all_reduce,
        saver=saver,
        claim=claim,
        about=resume_point.about,
        last_summary=resume_point.summary,
        first_step=resume_point.step,
        last_step=last_step,
        pause_step=pause_step,
        has_paused=pause_step in resume_point.pauses,
    )


def _say_what_depends_on_workers(model: keras.Model) -> None:
    """Says which results differ if workers come and go."""
    if any("seed_generator_state" in variable.path for variable in model.variables):
        say_on_chief(
            "the model draws random numbers (dropout, augmentation), other ones with another "
            "number of workers: while some are away, weights differ from those of an undisturbed "
            "run by more than rounding"
        )


def _resume_point(
    settings: TrainSettings, recipe: Recipe, workers: Workers, store: CheckpointStore | None
) -> ResumePoint:
    identity = {
        "recipe_sha256": recipe.digest,
        "seed": settings.seed,
        "global_batch_size": settings.global_batch_size,
        "mixed_precision": settings.mixed_precision,
        "gradient_dtype": settings.gradient_dtype,
        "bytes_per_pack": settings.bytes_per_pack,
    }
    summary_path = settings.workdir / "summary.json"
    return find_resume_point(workers, store, summary_path, identity, settings.adopt_checkpoints)


def _last_step(settings: TrainSettings, resume_point: ResumePoint, steps_per_epoch: int) -> int:
    if resume_point.about["stopped_early"]:
        return resume_point.step
    last_step = settings.steps or (settings.epochs or DEFAULT_EPOCHS) * steps_per_epoch
    if resume_point.step > last_step:
        raise BadInput(
            f"{settings.workdir} is at step {resume_point.step}, past the last step of "
            f"this command, {last_step}: raise --steps or --epochs, or use another --workdir"
        )
    return last_step


def _pause_step(settings: TrainSettings, resume_point: ResumePoint, last_step: int) -> int | None:
    """Returns the step at which this command pauses; None if it goes to the end."""
    pause_step = settings.pause_at_step
    if pause_step is None or pause_step >= last_step:
        return None
    if resume_point.step > pause_step and pause_step not in resume_point.pauses:
        raise BadInput(
            f"--pause_at_step is {pause_step}, and {settings.workdir} is at step "
            f"{resume_point.step}: name a later step, or use another --workdir"
        )
    return pause_step


def _check_model_and_data(
    settings: TrainSettings,
    recipe: Recipe,
    workers: Workers,
    model: keras.Model,
    data: RecipeData,
    batches: Batches,
) -> list[str]:
    """Builds the model, and checks model and data; returns the names of evaluation metrics."""
    compiled.check_batch_size(model, workers.replicas * settings.accumulate_steps)
    try:
        build(model, batches.element_spec, sample=lambda: batches.sample(EXAMPLES))
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"recipe {recipe.name}: the model does not take the batches of train_data and "
            f"preprocess, {batches.element_spec}: {error}"
        ) from error
    values = read_metrics(model) if data.eval is not None else {}
    metric_names = [name for name, value in values.items() if isinstance(value, (int, float))]
    workers.settle()
    if data.eval is not None:
        train_spec, eval_spec = pipeline.element_spec(data.train), pipeline.element_spec(data.eval)
        evaluation.check(data.eval, settings.auto_shard, workers)
        if not pipeline.are_compatible(train_spec, eval_spec):
            raise BadInput(
                f"recipe {recipe.name}: eval_data gives {eval_spec}, which differs from "
                f"train_data: {train_spec}"
            )
    metric, _, _ = settings.keep_best.rpartition(":")
    if metric and metric not in metric_names:
        raise BadInput(
            f"--keep_best is {settings.keep_best}: evaluations of recipe "
            f"{recipe.name} give {', '.join(metric_names) or 'nothing'}"
        )
    return metric_names


def _callbacks(
    recipe: Recipe, workers: Workers, metric_names: Sequence[str]
) -> list[keras.callbacks.Callback]:
    """Returns the recipe's callbacks, and Keras's History after them, as in ``Model.fit``."""
    if recipe.callbacks is None:
        return [keras.callbacks.History()]
    of_recipe: Any = recipe.callbacks(recipe.hparams)
    try:
        callbacks.check(of_recipe, [f"val_{name}" for name in metric_names])
    except BadInput as error:
        raise BadInput(f"recipe {recipe.name}: {error}") from None
    return [*of_recipe, keras.callbacks.History()]


def _check_publishing(
    settings: TrainSettings,
    recipe: Recipe,
    workers: Workers,
    model: keras.Model,
    data: RecipeData,
    metric_names: Sequence[str],
) -> None:
    folder = settings.publish_dir
    if folder is not None:
        workers.run_on_chief(
            lambda: publish_recipe.check(folder, settings, recipe, model, data.train, metric_names)
        )


def _all_reduce(
    resume_point: ResumePoint, model: keras.Model, workers: Workers
) -> GradientAllReduce:
    """Returns how gradients are all-reduced, with the pack size that the run started with.

    The order of summing depends on the pack size. If a resumed run chose it again, for another
    number of workers, it would differ from an undisturbed run in the last bits.
    """
    settings = resume_point.about["settings"]
    all_reduce = GradientAllReduce(settings["gradient_dtype"], settings["bytes_per_pack"])
    all_reduce = all_reduce.with_pack_size(model, workers.replicas)
    settings["bytes_per_pack"] = all_reduce.bytes_per_pack
    return all_reduce
