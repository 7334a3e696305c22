"""How a program's ports are the arguments and results of the model it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from defakeq.lower.structure import Slot, Structure, called_with


def plain_arguments(count: int) -> Structure:
    """Each input is a positional argument."""
    return Structure(called_with([Slot(i) for i in range(count)], {}))


def plain_results(count: int) -> Structure:
    """A tensor, or a tuple of several."""
    return Structure(Slot(0) if count == 1 else tuple(Slot(i) for i in range(count)))


@dataclass
class Call:
    """What a caller gives and gets.

    Attributes:
        inputs: the name of each tensor given.
        outputs: the name of each tensor returned; that of an input for one returned as it is.
        takes: how {"arguments": tuple, "keywords": dict} hold the inputs.
        returns: how the result holds the outputs.
    """

    inputs: Sequence[str]
    outputs: Sequence[str]
    takes: Structure
    returns: Structure

    def describe(self, inputs: Sequence[str], outputs: Sequence[str]) -> dict[str, Any]:
        """The entry "call" of a network whose ports have these names; nothing where each port is
        an argument, or the result or a member of a tuple."""
        plain = (
            list(self.inputs) == list(inputs)
            and list(self.outputs) == list(outputs)
            and self.takes.tree == plain_arguments(len(inputs)).tree
            and self.returns.tree == plain_results(len(outputs)).tree
        )
        if plain:
            return {}

        def result(number: int) -> dict[str, int]:
            name = self.outputs[number]
            if name in outputs:
                return {"output": list(outputs).index(name)}
            return {"input": list(self.inputs).index(name)}

        return {
            "call": {
                "inputs": list(self.inputs),
                "takes": self.takes.describe(lambda number: {"input": number}),
                "returns": self.returns.describe(result),
            }
        }

    @staticmethod
    def of_network(
        network: Mapping[str, Any], inputs: Sequence[str], outputs: Sequence[str]
    ) -> Call:
        """The call of a file's network.

        Args:
            network: of the file.
            inputs, outputs: the names of its ports.

        Raises:
            ValueError: an entry "call" that is wrong.
        """
        if "call" not in network:
            return Call(inputs, outputs, plain_arguments(len(inputs)), plain_results(len(outputs)))
        found = network["call"]
        keys = ("inputs", "takes", "returns")
        if not isinstance(found, Mapping) or any(key not in found for key in keys):
            raise ValueError(f"network.call: found {found!r}; accepted is an object with {keys}")
        names = found["inputs"]
        distinct = {str(name) for name in names} if isinstance(names, list) else set()
        given = len(distinct)
        if not set(inputs) <= distinct or given != len(names):
            raise ValueError(
                f"network.call.inputs: found {names!r}; accepted is each of {list(inputs)}, and "
                "others, once"
            )
        taken: list[int] = []

        def argument(tree: object) -> int:
            taken.append(_number(tree, "input", given))
            return taken[-1]

        takes = Structure.described(found["takes"], argument)
        parts = takes.tree if isinstance(takes.tree, dict) else {}
        if [type(parts.get(key)) for key in ("arguments", "keywords")] != [tuple, dict]:
            raise ValueError(
                f"network.call.takes: found {found['takes']!r}; accepted is a tuple of arguments "
                "and a dict of keywords"
            )
        if sorted(taken) != list(range(given)):
            raise ValueError(
                f"network.call.takes: found inputs {taken}; accepted is each of {given} once"
            )
        returned: list[str] = []

        def result(tree: object) -> int:
            if isinstance(tree, Mapping) and "input" in tree:
                returned.append(str(names[_number(tree, "input", given)]))
            else:
                returned.append(outputs[_number(tree, "output", len(outputs))])
            return len(returned) - 1

        returns = Structure.described(found["returns"], result)
        return Call([str(name) for name in names], returned, takes, returns)


def _number(tree: object, key: str, count: int) -> int:
    number = tree.get(key) if isinstance(tree, Mapping) and len(tree) == 1 else None
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < count:
        raise ValueError(
            f"network.call: found {tree!r}; accepted is a tuple, list, dict or value, or an {key} "
            f"below {count}"
        )
    return number
