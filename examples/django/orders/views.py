"""Views that place, show and cancel an order."""

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from longshore.orchestration.django import client, start_on_commit
from orders.models import Order
from orders.plans import order_plan


@csrf_exempt
@require_POST
def place(request: HttpRequest) -> JsonResponse:
    """Store an order, and start its run when the transaction commits."""
    try:
        with transaction.atomic():
            order = Order.objects.create(customer=request.POST["customer"], amount=request.POST["amount"])
            order.run_id = start_on_commit(order_plan(order, approve="approve" in request.POST))
            order.save()
            if int(order.amount) <= 0:
                raise ValueError("an order has at least one piece")
    except ValueError as error:
        return JsonResponse({"error": str(error)}, status=400)
    return JsonResponse({"order": order.pk, "run": order.run_id}, status=201)


def show(request: HttpRequest, number: int) -> JsonResponse:
    order = get_object_or_404(Order, pk=number)
    return JsonResponse({"state": order.state, "run": client().get(order.run_id).state()})


@csrf_exempt
@require_POST
def cancel(request: HttpRequest, number: int) -> JsonResponse:
    """Cancel the run of an order. Completed steps are compensated."""
    run = client().get(get_object_or_404(Order, pk=number).run_id)
    return JsonResponse({"command": run.cancel("by the customer")})
