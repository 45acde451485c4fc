//go:build !nobuckets

package main

// Where evidence can be kept: package evidence opens a bucket by its URL with whatever is imported here. The drivers
// weigh some 30 MB each time a process starts; the image of instances is built without them (-tags nobuckets).
import (
	_ "gocloud.dev/blob/azureblob" // azblob://
	_ "gocloud.dev/blob/gcsblob"   // gs://
	_ "gocloud.dev/blob/s3blob"    // s3://
)
