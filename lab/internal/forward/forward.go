// Package forward offers one TCP address inside the lab at another outside.
package forward

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Dialer reaches the inside.
type Dialer func(ctx context.Context) (net.Conn, error)

const dialLimit = 5 * time.Second

// Serve accepts connections on l and joins each to one made by dial, until ctx
// ends. When the inside cannot be reached the connection is closed.
func Serve(ctx context.Context, l net.Listener, dial Dialer, log *slog.Logger) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		outside, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			if err := join(ctx, outside, dial); err != nil {
				log.Debug("connection not forwarded", "error", err)
			}
		}()
	}
}

func join(ctx context.Context, outside net.Conn, dial Dialer) error {
	defer outside.Close()
	limited, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	inside, err := dial(limited)
	if err != nil {
		return err
	}
	defer inside.Close()
	stop := context.AfterFunc(ctx, func() { _ = inside.Close(); _ = outside.Close() })
	defer stop()
	var wg sync.WaitGroup
	errs := make([]error, 2)
	wg.Go(func() { errs[0] = pass(inside, outside) })
	wg.Go(func() { errs[1] = pass(outside, inside) })
	wg.Wait()
	return errors.Join(errs...)
}

// pass copies until the source ends, and hands the end on: a half-closed
// connection stays usable the other way.
func pass(to, from net.Conn) error {
	_, err := io.Copy(to, from)
	if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
		return half.CloseWrite()
	}
	_ = to.Close()
	return err
}
