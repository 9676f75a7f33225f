"""Gradients of an operator's call, taken within the implementation of its backward operator."""

import contextlib
import contextvars
import threading

import torch
from torch import Tensor


def gradients_of(call, count, grads, needed, arguments) -> list[Tensor]:
    """The gradients of ``call`` by those of its first ``count`` arguments that are needed."""
    leaves = [
        x if x is None else x.detach().requires_grad_(need)
        for x, need in zip(arguments[:count], needed, strict=True)
    ]
    outputs = call(*leaves, *arguments[count:])
    pairs = [
        (out, grad)
        for out, grad in zip(outputs, grads, strict=True)
        if grad is not None and out.requires_grad
    ]
    wanted = [x for x, need in zip(leaves, needed, strict=True) if need and x is not None]
    if not pairs:
        return [torch.zeros_like(x) for x in wanted]
    outputs, grads = zip(*pairs, strict=True)
    found = torch.autograd.grad(outputs, wanted, grads, allow_unused=True)
    return [
        torch.zeros_like(x) if grad is None else grad.clone(memory_format=torch.preserve_format)
        for x, grad in zip(wanted, found, strict=True)
    ]


def on_a_thread(function, *arguments):
    """``function(*arguments)`` with autograd at work; the last argument holds a tensor.

    Within an operator's implementation torch records nothing for autograd. That is a state of the
    thread, so the function runs on a thread of its own, with the caller's context variables (such
    as the chosen backend) and with its stream of the device.
    """
    context = contextvars.copy_context()
    device = next(x.device for x in arguments[-1] if isinstance(x, Tensor))
    stream: contextlib.AbstractContextManager = contextlib.nullcontext()
    if device.type == "cuda":
        stream = torch.cuda.stream(torch.cuda.current_stream(device))
    outcome = {}

    def work():
        try:
            with stream:
                outcome["result"] = context.run(function, *arguments)
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]
