package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// bucket is a Destination in a bucket of a service that speaks S3. An object is one request, so it is there whole or not at all; requests
// are signed, and say what they are to store by hash.
type bucket struct {
	client *minio.Client
	name   string
	prefix string // empty, or ends in a slash
	where  string
}

const (
	slowest     = 5 * time.Minute // one request may take
	attempts    = 3               // of one request, before its error is told
	pause       = 200 * time.Millisecond
	amazon      = "s3.amazonaws.com"
	listedAtOne = 1000
)

// idle is how long a request may be without an answer.
const idle = time.Minute

var bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)

func openBucket(u *url.URL) (Destination, error) {
	query := u.Query()
	for name := range query {
		switch name {
		case "endpoint", "region", "credentials", "profile":
		default:
			return nil, fmt.Errorf("archive: unknown parameter %q of an S3 destination: use endpoint, region, credentials and profile", name)
		}
	}
	if !bucketName.MatchString(u.Host) {
		return nil, errors.New("archive: a bucket is named as s3://bucket/prefix")
	}
	endpoint, secure := amazon, true
	if e := query.Get("endpoint"); e != "" {
		at, err := url.Parse(e)
		if err != nil || at.Host == "" || at.User != nil || at.RawQuery != "" || strings.Trim(at.Path, "/") != "" || at.Scheme != "https" && at.Scheme != "http" {
			return nil, errors.New("archive: endpoint must be a URL like https://s3.example.com:9000")
		}
		if at.Scheme == "http" && !loopback(at.Hostname()) {
			return nil, errors.New("archive: plain HTTP off loopback shows the network what is stored when: use an https:// endpoint")
		}
		endpoint, secure = at.Host, at.Scheme == "https"
	}
	transport, err := minio.DefaultTransport(secure)
	if err != nil {
		return nil, err
	}
	transport.ResponseHeaderTimeout = idle
	client, err := minio.New(endpoint, &minio.Options{
		Creds: access(query.Get("credentials"), query.Get("profile"), transport), Secure: secure, Region: query.Get("region"),
		Transport: transport, MaxRetries: 1, // see persist
	})
	if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	prefix := strings.Trim(u.Path, "/")
	where := "s3://" + u.Host + "/" + prefix
	if prefix != "" {
		prefix += "/"
	}
	if endpoint != amazon {
		where += " at " + endpoint
	}
	return &bucket{client, u.Host, prefix, where}, nil
}

// access finds who we are: by a file, else as AWS's tools do.
func access(file, profile string, transport http.RoundTripper) *credentials.Credentials {
	if file != "" {
		return credentials.NewFileAWSCredentials(file, profile)
	}
	return credentials.NewChainCredentials([]credentials.Provider{
		&credentials.EnvAWS{}, &credentials.FileAWSCredentials{Profile: profile},
		&credentials.IAM{Client: &http.Client{Transport: transport, Timeout: 10 * time.Second}},
	})
}

func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback() || strings.EqualFold(host, "localhost")
}

// String implements Destination.
func (b *bucket) String() string { return b.where }

// List implements Destination.
func (b *bucket) List(ctx context.Context) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		o := minio.ListObjectsOptions{Prefix: b.prefix, Recursive: true, MaxKeys: listedAtOne}
		for object := range b.client.ListObjects(ctx, b.name, o) {
			if object.Err != nil {
				yield(Object{}, b.explain(object.Err))
				return
			}
			if !yield(Object{strings.TrimPrefix(object.Key, b.prefix), object.Size}, nil) {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(Object{}, err)
		}
	}
}

// Read implements Destination.
func (b *bucket) Read(ctx context.Context, name string) ([]byte, error) {
	var content []byte
	err := persist(ctx, func(ctx context.Context) error {
		object, err := b.client.GetObject(ctx, b.name, b.prefix+name, minio.GetObjectOptions{})
		if err != nil {
			return err
		}
		defer func() { _ = object.Close() }()
		content, err = bounded(object, name)
		return err
	})
	if err != nil && minio.ToErrorResponse(err).Code == minio.NoSuchKey {
		return nil, fmt.Errorf("%w: %s", ErrGone, name)
	}
	return content, b.explain(err)
}

// persist tries a request again that may succeed then, and gives up on one that takes too long. The library's own retries read a body
// anew while its first sending may still be under way.
func persist(ctx context.Context, request func(context.Context) error) error {
	once := func() error {
		ctx, cancel := context.WithTimeout(ctx, slowest)
		defer cancel()
		return request(ctx)
	}
	err := once()
	for i := 1; i < attempts && err != nil && ctx.Err() == nil; i++ {
		if status := minio.ToErrorResponse(err).StatusCode; status >= 400 && status < 500 && status != http.StatusTooManyRequests {
			break
		}
		select {
		case <-time.After(time.Duration(i) * pause):
			err = once()
		case <-ctx.Done():
		}
	}
	return err
}

// Write implements Destination. There is no need to ask the service to write only what is not there yet, as not all can: what is there
// under this name is the same.
func (b *bucket) Write(ctx context.Context, name string, content []byte) error {
	return b.explain(persist(ctx, func(ctx context.Context) error {
		_, err := b.client.PutObject(ctx, b.name, b.prefix+name, bytes.NewReader(content), int64(len(content)),
			minio.PutObjectOptions{ContentType: "application/octet-stream", DisableMultipart: true, SendContentMd5: true})
		return err
	}))
}

// Delete implements Destination.
func (b *bucket) Delete(ctx context.Context, name string) error {
	return b.explain(persist(ctx, func(ctx context.Context) error {
		return b.client.RemoveObject(ctx, b.name, b.prefix+name, minio.RemoveObjectOptions{})
	}))
}

// explain says in words what a service answered, without what was sent.
func (b *bucket) explain(err error) error {
	if err == nil {
		return nil
	}
	var network net.Error
	if errors.As(err, &network) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("archive: %s cannot be reached: %w", b.where, err)
	}
	if r := minio.ToErrorResponse(err); r.Code != "" {
		return fmt.Errorf("archive: %s refused: %s (%s)", b.where, r.Code, r.Message)
	}
	return fmt.Errorf("archive: %s: %w", b.where, err)
}
