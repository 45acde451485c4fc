package evictions

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/go-logr/logr"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"theseus.dev/theseus/api/v1alpha1"
	"theseus.dev/theseus/internal/controller/request"
)

// refresh is how old the mark on a Pod may be before it is written again. Package drain believes a mark for longer.
const refresh = 20 * time.Second

// Handler answers admission reviews of evictions.
type Handler struct {
	// Client reads from the cache.
	Client client.Client
	Clock  clock.PassiveClock
}

var _ admission.Handler = &Handler{}

// Handle lets everything pass that is not an instance of a living shard. What it cannot find out passes, too: then the
// disruption budget decides.
func (h *Handler) Handle(ctx context.Context, req admission.Request) admission.Response {
	pass := admission.Allowed("")
	pod := &corev1.Pod{}
	if err := h.Client.Get(ctx, client.ObjectKey{Namespace: req.Namespace, Name: req.Name}, pod); err != nil {
		return pass // only our own Pods are in the cache
	}
	if pod.Labels[v1alpha1.LabelComponent] != v1alpha1.ComponentInstance || ended(pod) {
		return pass
	}
	shard := &v1alpha1.Shard{}
	err := h.Client.Get(ctx, client.ObjectKey{Namespace: pod.Namespace, Name: pod.Labels[v1alpha1.LabelShard]}, shard)
	if err != nil || shard.DeletionTimestamp != nil || !metav1.IsControlledBy(pod, shard) {
		return pass
	}
	if req.DryRun == nil || !*req.DryRun {
		if err := h.mark(ctx, pod); err != nil {
			// Refused all the same: whoever drains asks again, and it is marked then.
			logr.FromContextOrDiscard(ctx).Error(err, "cannot mark the Pod whose eviction was asked for", "pod", pod.Namespace+"/"+pod.Name, "by", req.UserInfo.Username)
		}
	}
	return refuse(fmt.Sprintf("instance %s of shard %s is moved to another node first; ask again%s", pod.Name, shard.Name, h.progress(ctx, pod)))
}

func ended(pod *corev1.Pod) bool {
	return pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
}

func refuse(message string) admission.Response {
	return admission.Response{AdmissionResponse: admissionv1.AdmissionResponse{
		Allowed: false,
		Result: &metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusTooManyRequests, Reason: metav1.StatusReasonTooManyRequests, Message: message,
		},
	}}
}

// progress says how far the replacement is: who drains prints it.
func (h *Handler) progress(ctx context.Context, pod *corev1.Pod) string {
	list, err := request.Requests{Client: h.Client}.Of(ctx, pod)
	if err != nil {
		return ""
	}
	for i := range list {
		s := &list[i].Status
		switch {
		case s.Outcome == "Failed":
			return fmt.Sprintf(" (the last attempt failed: %s)", s.Message)
		case s.Outcome != "" || s.Phase == "":
		case s.Waiting != "":
			return fmt.Sprintf(" (%s: %s)", s.Phase, s.Waiting)
		default:
			return fmt.Sprintf(" (%s)", s.Phase)
		}
	}
	return ""
}

// mark writes the time of the request onto the Pod, and whether its node was cordoned.
func (h *Handler) mark(ctx context.Context, pod *corev1.Pod) error {
	now := h.Clock.Now().UTC()
	cordoned := "false"
	node := &corev1.Node{}
	if err := h.Client.Get(ctx, client.ObjectKey{Name: pod.Spec.NodeName}, node); err == nil && node.Spec.Unschedulable {
		cordoned = "true"
	}
	last, err := time.Parse(time.RFC3339, pod.Annotations[v1alpha1.AnnotationEvictionRequested])
	if err == nil && now.Sub(last) < refresh && pod.Annotations[v1alpha1.AnnotationEvictionCordoned] == cordoned {
		return nil
	}
	patch := client.MergeFrom(pod.DeepCopy())
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[v1alpha1.AnnotationEvictionRequested] = now.Format(time.RFC3339)
	pod.Annotations[v1alpha1.AnnotationEvictionCordoned] = cordoned
	err = h.Client.Patch(ctx, pod, patch)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
