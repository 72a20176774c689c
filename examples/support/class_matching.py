"""Which class of a model a class of a data set is."""

from collections.abc import Sequence

from .errors import InputError, first_few, say


def match_classes(model_names: Sequence[str], names: Sequence[str]) -> list[int]:
    """Index in the model of each class of the data set: by name where the model has all, by order where none.

    Case and spaces around names do not matter. A data set may have fewer classes than the model.

    Raises:
        InputError: Only some names agree, or none does and there are more classes than the model has.
    """
    indices = {normalize(name): index for index, name in enumerate(model_names)}
    unknown = [name for name in names if normalize(name) not in indices]
    if not unknown:
        return [indices[normalize(name)] for name in names]
    if len(unknown) == len(names) and (len(names) == len(model_names) or are_numbers(names, model_names)):
        say("the classes of model and data set have different names, so they are matched in order")
        return list(range(len(names)))
    raise InputError(
        f"{len(unknown)} of the data set's {len(names)} classes ({first_few(unknown)}) are not among the model's "
        f"{len(model_names)}: give the model's names, in the order of the data set's labels, with --class_names"
    )


def normalize(name: str) -> str:
    """Name as it is compared."""
    return " ".join(name.casefold().split())


def are_numbers(names: Sequence[str], model_names: Sequence[str]) -> bool:
    """Whether the data set's classes have no names but indices, all of which the model has."""
    return len(names) <= len(model_names) and all(name == str(index) for index, name in enumerate(names))
