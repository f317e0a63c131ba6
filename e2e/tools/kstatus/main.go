// Print what kstatus makes of each object on standard input: a line with its verdict and why.
package main

import (
	stdjson "encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

func main() {
	objects := stdjson.NewDecoder(os.Stdin)
	for {
		verdict, err := next(objects)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Printf("%s: %s\n", verdict.Status, verdict.Message)
	}
}

func next(objects *stdjson.Decoder) (*status.Result, error) {
	var text stdjson.RawMessage
	if err := objects.Decode(&text); err != nil {
		return nil, err
	}
	// Kubernetes' own decoder: kstatus wants whole numbers as int64.
	object := map[string]any{}
	if err := json.Unmarshal(text, &object); err != nil {
		return nil, err
	}
	return status.Compute(&unstructured.Unstructured{Object: object})
}
